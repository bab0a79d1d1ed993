"""`manage.py import_balances`: the users of an existing bot keep their credits."""

from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from accounts.models import CreditTransaction, User
from telegram_bot.models import TelegramAccount
from telegram_bot.users import open_account

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_signup_credits(settings):
    settings.SIGNUP_CREDITS = 0


@pytest.fixture
def import_file(tmp_path: Path):
    def run(content: str | bytes) -> str:
        file = tmp_path / "balances.csv"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        said = StringIO()
        call_command("import_balances", str(file), stdout=said)
        return said.getvalue()

    return run


def balance_of(telegram_id: int) -> int:
    return TelegramAccount.objects.get(telegram_id=telegram_id).user.credit_account.balance


def test_everybody_in_the_file_gets_an_account_with_their_credits(import_file):
    said = import_file("telegram_id,credits\n1001,250\n1002,70\n")
    assert (balance_of(1001), balance_of(1002)) == (250, 70)
    assert "320 credits imported. People credited: 2." in said
    person = User.objects.get(username="tg_1001")
    assert not person.has_usable_password()


def test_a_file_imported_twice_credits_once(import_file):
    import_file("telegram_id,credits\n1001,250\n")
    said = import_file("telegram_id,credits\n1001,250\n1002,70\n")
    assert (balance_of(1001), balance_of(1002)) == (250, 70)
    assert "70 credits imported. People credited: 1. Lines with nothing new: 1." in said


def test_credits_are_once_for_each_id_even_with_another_amount(import_file):
    import_file("telegram_id,credits\n1001,250\n")
    import_file("telegram_id,credits\n1001,900\n")
    assert balance_of(1001) == 250
    assert CreditTransaction.objects.get(external_id="import:1001").amount == 250


def test_somebody_who_already_wrote_to_the_bot_keeps_their_account(import_file):
    account = open_account(telegram_id=1001)
    import_file("telegram_id,credits\n1001,250\n")
    assert balance_of(1001) == 250
    assert TelegramAccount.objects.get(telegram_id=1001).pk == account.pk


def test_a_stranger_with_the_same_user_name_is_not_credited(import_file):
    stranger = User.objects.create_user(username="tg_1001")
    import_file("telegram_id,credits\n1001,250\n")
    assert balance_of(1001) == 250
    assert stranger.credit_account.balance == 0


def test_nothing_to_give_still_opens_the_account(import_file):
    assert "0 credits imported. People credited: 0." in import_file("telegram_id,credits\n1001,0\n")
    assert balance_of(1001) == 0


def test_spaces_blank_lines_and_a_byte_order_mark_are_fine(import_file):
    import_file(b"\xef\xbb\xbftelegram_id, credits\r\n 1001 , 250 \r\n\r\n1002,70\r\n")
    assert (balance_of(1001), balance_of(1002)) == (250, 70)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("abc,5", "line 3: 'abc' is not the id of a Telegram user"),
        ("-5,5", "line 3: '-5' is not the id of a Telegram user"),
        ("99999999999999999999,5", "line 3: '99999999999999999999' is not the id"),
        ("1002,-5", "line 3: '-5' is not a whole number of credits"),
        ("1002,2.5", "line 3: '2.5' is not a whole number of credits"),
        ("1002,٣", "line 3: '٣' is not a whole number of credits"),
        ("1002", "line 3: 1 values instead of 2"),
        ("1002,5,6", "line 3: 3 values instead of 2"),
        ("1001,5", "line 3: telegram_id 1001 was on line 2"),
    ],
)
def test_a_mistake_is_named_by_its_line_and_nothing_is_imported(import_file, line, complaint):
    with pytest.raises(CommandError, match="Nothing was imported") as refusal:
        import_file(f"telegram_id,credits\n1001,250\n{line}\n")
    assert complaint in str(refusal.value)
    assert not TelegramAccount.objects.exists()


def test_all_mistakes_are_named_at_once(import_file):
    with pytest.raises(CommandError) as refusal:
        import_file("telegram_id,credits\nx,1\n5,y\n")
    assert "line 2:" in str(refusal.value)
    assert "line 3:" in str(refusal.value)


@pytest.mark.parametrize("content", ["", "1001,250\n", "credits,telegram_id\n1,2\n"])
def test_a_file_without_its_heading_is_refused(import_file, content):
    with pytest.raises(CommandError, match="the first line must be telegram_id,credits"):
        import_file(content)


def test_a_file_that_is_no_text_is_refused(import_file):
    with pytest.raises(CommandError, match="cannot be read as CSV in UTF-8"):
        import_file(b"telegram_id,credits\n\xff\xfe,5\n")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CommandError, match="cannot be read"):
        call_command("import_balances", str(tmp_path / "nothing.csv"))
