"""A process that spends as fast as it can: `python -m tests.chaos.spender USERNAME TRIES` prints how often it could."""

import sys

import django


def main() -> None:
    django.setup()
    from accounts.models import User
    from generation.errors import InsufficientCredits
    from generation.jobs import submission

    user, accepted = User.objects.get(username=sys.argv[1]), 0
    sys.stdin.readline()  # all start at once
    for _ in range(int(sys.argv[2])):
        try:
            submission.submit(user=user, prompt="a race for the last credits", source="api")
            accepted += 1
        except InsufficientCredits:
            pass
    print(accepted)


if __name__ == "__main__":
    main()
