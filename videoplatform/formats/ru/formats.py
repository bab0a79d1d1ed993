"""Russian: months in the genitive, as one reads a date."""

DATE_FORMAT = "j E Y"
MONTH_DAY_FORMAT = "j E"
