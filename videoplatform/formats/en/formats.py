"""English: times as the logs, the ledger and the nodes write them, so that they can be compared at a glance."""

DATETIME_FORMAT = SHORT_DATETIME_FORMAT = "Y-m-d H:i"
DATE_FORMAT = "j M Y"
MONTH_DAY_FORMAT = "j M"
