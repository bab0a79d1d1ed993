"""Take one guard away from every Python process that starts with this folder on its path. Only for negative controls.

SABOTAGE=fail_fast: a worker whose part was killed does not end as a whole. Others still can end its group.
"""

import os

if os.environ.get("SABOTAGE") == "fail_fast":
    real = os.killpg
    os.killpg = lambda group, number: None if group == os.getpgrp() else real(group, number)
