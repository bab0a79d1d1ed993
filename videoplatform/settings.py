"""Settings of the platform, read from the environment (or from `.env`) by typed readers that fail loudly.

docs/configuration.md lists every variable. Credits are whole numbers, times are seconds.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dj_database_url
from csp.constants import NONE, SELF, UNSAFE_EVAL, UNSAFE_INLINE
from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static
from environs import Env, validate

from videoplatform import embedded_postgres
from videoplatform.staff_menu import NAVIGATION

BASE_DIR = Path(__file__).resolve().parent.parent

env = Env()
env.read_env(str(BASE_DIR / ".env"), recurse=False)
PORTS = validate.Range(min=1, max=65535)
POSITIVE = validate.Range(min=0, min_inclusive=False)
NOT_NEGATIVE = validate.Range(min=0)


def names(variable: str, default: list[str]) -> list[str]:
    """Read names separated by commas; space around them is dropped, and an empty value means the default."""
    given: list[str] = env.list(variable, [])
    return [name.strip() for name in given if name.strip()] or default


# --- Core -------------------------------------------------------------------------------------------------------------
DEBUG = env.bool("DEBUG", False)
SECRET_KEY = env.str("SECRET_KEY", "only-for-debugging" if DEBUG else "")
if not SECRET_KEY:
    raise ImproperlyConfigured(
        "SECRET_KEY is not set. `make run` writes one to .env; elsewhere set it yourself."
    )

# Stored secrets are encrypted with the first one and read with all of them.
ENCRYPTION_KEYS = names("ENCRYPTION_KEYS", [SECRET_KEY])

PORT = env.int("PORT", 8000, validate=PORTS)
ALLOWED_HOSTS = names("ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
LOCAL_URL = f"http://localhost:{PORT}"
SITE_URL = env.str("SITE_URL", LOCAL_URL).rstrip("/") or LOCAL_URL
if urlsplit(SITE_URL).scheme not in ("http", "https") or urlsplit(SITE_URL).path:
    raise ImproperlyConfigured(
        "SITE_URL must be an address such as https://video.example.org. The site cannot be served below a path of "
        "another site: give it a host name of its own."
    )
CSRF_TRUSTED_ORIGINS = names("CSRF_TRUSTED_ORIGINS", [SITE_URL] if SITE_URL.startswith("https://") else [])
DATA_DIR = env.path("DATA_DIR", BASE_DIR / ".data").resolve()
LOG_LEVEL = env.log_level("LOG_LEVEL", logging.INFO)

ROOT_URLCONF = "videoplatform.urls"
ASGI_APPLICATION = "videoplatform.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin.apps.SimpleAdminConfig",  # urls.py loads the pages: only the web process needs them
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.usersessions",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_htmx",
    "django_q",
    "accounts",
    "generation",
    "telegram_bot",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "videoplatform.hardening.StaticFiles",
    "videoplatform.hardening.PageHeaders",
    "videoplatform.hardening.RefuseUnreadable",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "accounts.languages.LanguageMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "accounts.limits.LimitForms",
    "accounts.auth.RequireSecondFactor",
    "django_htmx.middleware.HtmxMiddleware",
]

TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "accounts.context_processors.account",
                "telegram_bot.context_processors.bot",
            ],
        },
    },
]

# --- Database: PostgreSQL only ----------------------------------------------------------------------------------------
DATABASE_URL = env.str("DATABASE_URL", "")
EMBEDDED_POSTGRES = not DATABASE_URL
DATABASES: dict[str, Any] = {
    "default": embedded_postgres.connection_settings(DATA_DIR)
    if EMBEDDED_POSTGRES
    else dict(dj_database_url.parse(DATABASE_URL, conn_max_age=600, conn_health_checks=True)),
}
if not DATABASES["default"]["ENGINE"].endswith("postgresql"):
    raise ImproperlyConfigured(
        "DATABASE_URL must name a PostgreSQL server: the ledger's guards are PostgreSQL triggers."
    )
# The role that owns the tables and their guards, for `migrate` and `restore`; all else is done as one that reads and
# changes rows. Where it is empty, one role does both.
DATABASE_OWNER_URL = env.str("DATABASE_OWNER_URL", "")
DATABASE_OWNER: dict[str, Any] = (
    embedded_postgres.connection_settings(DATA_DIR, role=embedded_postgres.NAME)
    if EMBEDDED_POSTGRES
    else dict(dj_database_url.parse(DATABASE_OWNER_URL))
    if DATABASE_OWNER_URL
    else {}
)
SERVING_ROLE = DATABASES["default"]["USER"]
# A pooler in transaction mode between this and PostgreSQL drops LISTEN, and what a session holds: that goes here.
DATABASE_LISTEN_URL = env.str("DATABASE_LISTEN_URL", "")
if DATABASE_LISTEN_URL and not DATABASE_URL:
    raise ImproperlyConfigured(
        "DATABASE_LISTEN_URL is for the server that DATABASE_URL leads to: set that, too."
    )
if DATABASE_LISTEN_URL and not DATABASE_LISTEN_URL.startswith(("postgres://", "postgresql://")):
    raise ImproperlyConfigured("DATABASE_LISTEN_URL must start with postgres:// and name the server itself.")
DATABASES["default"]["DISABLE_SERVER_SIDE_CURSORS"] = bool(DATABASE_LISTEN_URL)
# The web process serves many short requests on threads that come and go: it shares a pool. All others keep a
# connection a thread (bot and reconciler have up to eight, generation/database.py): a pool that is forked, as the
# worker forks, gives one connection to two processes. asgi.py names the process, so that its children are not mistaken
# for it.
WEB_PROCESS = env.str("VIDEOPLATFORM_WEB_PID", "") == str(os.getpid())
DATABASE_POOL_SIZE = env.int("DATABASE_POOL_SIZE", 10, validate=NOT_NEGATIVE) if WEB_PROCESS else 0
# A page's statement is canceled after this, and answered 503; a pooler would refuse the option.
DATABASE_STATEMENT_SECONDS = env.float("DATABASE_STATEMENT_SECONDS", 30.0, validate=POSITIVE)
if WEB_PROCESS and not DATABASE_LISTEN_URL:
    DATABASES["default"].setdefault("OPTIONS", {})["options"] = (
        f"-c statement_timeout={DATABASE_STATEMENT_SECONDS * 1000:.0f}"
    )
if DATABASE_POOL_SIZE:
    DATABASES["default"] |= {
        "ENGINE": "videoplatform.postgresql",
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": False,
    }
    DATABASES["default"].setdefault("OPTIONS", {})["pool"] = {
        "min_size": 1,
        "max_size": DATABASE_POOL_SIZE,
        "timeout": env.float("DATABASE_POOL_SECONDS", 10.0, validate=POSITIVE),  # then the answer is 503
        # The pauses between attempts to connect double. Then the pool gives up, and the next request makes an attempt.
        "reconnect_timeout": 5.0,
    }

# --- Accounts ---------------------------------------------------------------------------------------------------------
# Only allauth uses it, for codes of the second step that were used: no other process may take one again.
CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "accounts_cache"}}
AUTH_USER_MODEL = "accounts.User"
# One, so that a wrong password takes as long as a right one, and no name.
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
PASSWORD_HASHERS = ["accounts.auth.BoundedHasher"]
PASSWORD_CHECKS_AT_ONCE = env.int("PASSWORD_CHECKS_AT_ONCE", 2, validate=validate.Range(min=1))
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
] + [{"NAME": "accounts.spelling.NotTrivial"}]
SESSION_ENGINE = "accounts.auth"
ACCOUNT_ADAPTER = "accounts.auth.AccountAdapter"
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "dashboard"
LOGOUT_REDIRECT_URL = "dashboard"
ACCOUNT_LOGIN_METHODS = {"username", "email"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "email", "password1*"]
ACCOUNT_EMAIL_VERIFICATION = "optional"
# One address; a new one replaces it once it is confirmed.
ACCOUNT_CHANGE_EMAIL = True
ACCOUNT_EMAIL_NOTIFICATIONS = True
ACCOUNT_LOGOUT_ON_GET = False
ACCOUNT_SESSION_REMEMBER = True
# Before what a thief of a session would do first: a sign-in within this time, or the password or a code again.
ACCOUNT_REAUTHENTICATION_REQUIRED = True
ACCOUNT_REAUTHENTICATION_TIMEOUT = 600
SECURITY_LOG_DAYS = env.int("SECURITY_LOG_DAYS", 180, validate=POSITIVE)
# allauth's own limits live in each process's memory; these, of accounts.limits, in the database. Times in seconds;
# 0 times: not limited.
ACCOUNT_RATE_LIMITS = MFA_RATE_LIMITS = False
RATE_LIMITS = {
    "sign_in": (30, 60),
    "sign_up": (20, 60),
    "guess": (10, 600),  # of one name's password, from one network
    "guess_network": (60, 600),  # of all passwords, from one network
    "guess_name": (100, 3600),  # of one name's password, from all networks and unknown devices
    "guess_device": (20, 600),  # of one name's password, on a device that was signed in with it
    "guess_own": (5, 60),  # of one's own password or code, signed in
    "form": (20, 60),
    "mail": (6, 3600),  # to one address, about signing in
    "proof": (1, 1200),  # each solution of a sign-up's puzzle, for as long as it is good
    "report": (10, 3600),
    "api_wrong_key": (60, 60),
    "log_wrong_key": (1, 3600),  # entries of the security log about them, for a network
    "look": (1, 3600),  # entries of the audit log about one who looks at one thing
    "api_create": (60, 60),
    "api_read": (1200, 60),
}
for _limit in names("RATE_LIMITS", []):
    _parts = re.fullmatch(r"(\w+)=(\d{1,9})/([1-9]\d{0,5})", _limit)
    if _parts is None or _parts[1] not in RATE_LIMITS:
        raise ImproperlyConfigured(f"RATE_LIMITS: {_limit} is not like sign_in=30/60 (times in seconds).")
    RATE_LIMITS[_parts[1]] = (int(_parts[2]), int(_parts[3]))
MFA_ADAPTER = "accounts.auth.SecondStepAdapter"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
ACCOUNT_FORMS = {"signup": "accounts.forms.SignUpForm"}
# Sign-ups solve a puzzle, which takes a browser a second.
SIGNUP_PROOF_OF_WORK = env.bool("SIGNUP_PROOF_OF_WORK", False)
MFA_FORMS = {"add_webauthn": "accounts.forms.PasskeyForm"}
MFA_TOTP_TOLERANCE = 1  # half minutes: clocks of phones differ, and so does the speed of typing
MFA_TOTP_ISSUER = "Video platform"
SIGNUP_CREDITS = env.int("SIGNUP_CREDITS", 500, validate=NOT_NEGATIVE)
EMAIL_HOST = env.str("EMAIL_HOST", "")
EMAIL_PORT = env.int("EMAIL_PORT", 587, validate=PORTS)
EMAIL_HOST_USER = env.str("EMAIL_HOST_USER", "")
EMAIL_HOST_PASSWORD = env.str("EMAIL_HOST_PASSWORD", "")
EMAIL_USE_SSL = env.bool("EMAIL_USE_SSL", False)
EMAIL_USE_TLS = env.bool("EMAIL_USE_TLS", not EMAIL_USE_SSL)
# Where no mail is sent no address is ever confirmed: one that was given by choice must not bar the second step.
MFA_ALLOW_UNVERIFIED_EMAIL = not EMAIL_HOST
EMAIL_TIMEOUT = 10  # the page waits while it is sent
EMAIL_BACKEND = f"django.core.mail.backends.{'smtp' if EMAIL_HOST else 'console'}.EmailBackend"
# For web sign-ups that have confirmed no address; the rest comes when they do.
UNVERIFIED_SIGNUP_CREDITS = env.int(
    "UNVERIFIED_SIGNUP_CREDITS", 0 if EMAIL_HOST else SIGNUP_CREDITS, validate=NOT_NEGATIVE
)
# Accounts a day that start with credits. 0: any number.
RATE_LIMITS["signup_grants"] = (env.int("SIGNUP_GRANTS_PER_NETWORK", 5, validate=NOT_NEGATIVE), 86400)
RATE_LIMITS["signup_grants_of_all"] = (env.int("SIGNUP_GRANTS_PER_DAY", 1000, validate=NOT_NEGATIVE), 86400)
DEFAULT_FROM_EMAIL = env.str("DEFAULT_FROM_EMAIL", "Video platform <noreply@localhost>")


# --- The operator: shown at the foot of every page, and by the bot's /paysupport and /terms --------------------------
# An address or a @name.
SUPPORT_CONTACT = env.str("SUPPORT_CONTACT", "")
TERMS_URL = env.str("TERMS_URL", "")
PRIVACY_URL = env.str("PRIVACY_URL", "")
for _page in (TERMS_URL, PRIVACY_URL):
    if _page and urlsplit(_page).scheme not in ("http", "https"):
        raise ImproperlyConfigured("TERMS_URL and PRIVACY_URL must start with http:// or https://")

# --- Staff ------------------------------------------------------------------------------------------------------------
STAFF_REQUIRE_MFA = env.bool("STAFF_REQUIRE_MFA", not DEBUG)
# The most that support and operators may refund in any 24 hours; finance and owners are not bound by it.
REFUND_LIMIT_CREDITS = env.int("REFUND_LIMIT_CREDITS", 5000, validate=NOT_NEGATIVE)

# What one member of the staff may give away in any 24 hours; beyond the second, a colleague has to approve it.
GRANT_DAILY_CREDITS = env.int("GRANT_DAILY_CREDITS", 100_000, validate=NOT_NEGATIVE)
GRANT_APPROVAL_CREDITS = env.int("GRANT_APPROVAL_CREDITS", 10_000, validate=NOT_NEGATIVE)

# --- Generation: price and limits of a clip ---------------------------------------------------------------------------
# More credits: a shop, a form, an address to write to.
CREDITS_URL = env.str("CREDITS_URL", "")
if CREDITS_URL and urlsplit(CREDITS_URL).scheme not in ("http", "https", "mailto"):
    raise ImproperlyConfigured("CREDITS_URL must start with http://, https:// or mailto:")
VIDEO_COST = env.int("VIDEO_COST", 50, validate=NOT_NEGATIVE)
VIDEO_COOLDOWN_SECONDS = env.int("VIDEO_COOLDOWN_SECONDS", 60, validate=NOT_NEGATIVE)
MAX_PROMPT_LENGTH = env.int("MAX_PROMPT_LENGTH", 200, validate=POSITIVE)
# From this share of the steps on, a user who cancels pays for the share that is made; 0: never.
CANCEL_CHARGE_AFTER_PERCENT = env.int("CANCEL_CHARGE_AFTER_PERCENT", 0, validate=validate.Range(0, 100))
STAFF_GENERATE_FREE = env.bool("STAFF_GENERATE_FREE", True)
VIDEO_EXPECTED_SECONDS = env.int("VIDEO_EXPECTED_SECONDS", 30, validate=POSITIVE)

# --- GPU nodes --------------------------------------------------------------------------------------------------------
VIDEO_API_URL = env.str("VIDEO_API_URL", "").rstrip("/")
VIDEO_API_KEY = env.str("VIDEO_API_KEY", "")
if VIDEO_API_URL and urlsplit(VIDEO_API_URL).scheme not in ("http", "https"):
    raise ImproperlyConfigured("VIDEO_API_URL must start with http:// or https://")
# Where all nodes stand elsewhere: false, and no address of a node leads into the own network.
NODE_PRIVATE_NETWORKS = env.bool("NODE_PRIVATE_NETWORKS", True)
FIELD_NODE_TIMEOUT_SECONDS = env.int("FIELD_NODE_TIMEOUT_SECONDS", 90, validate=POSITIVE)
NODE_HEALTH_SECONDS = env.float("NODE_HEALTH_SECONDS", 5.0, validate=POSITIVE)
NODE_ANSWER_SECONDS = env.float("NODE_ANSWER_SECONDS", 10.0, validate=POSITIVE)
NODE_LOST_SECONDS = env.int("NODE_LOST_SECONDS", 120, validate=POSITIVE)
NODE_MOVE_SECONDS = env.int("NODE_MOVE_SECONDS", 30, validate=POSITIVE)
# After this many failed attempts in a row a node is set aside; canary clips decide when it is back.
NODE_FAILURES_TO_SET_ASIDE = env.int("NODE_FAILURES_TO_SET_ASIDE", 5, validate=POSITIVE)
NODE_TRIAL_SECONDS = env.int("NODE_TRIAL_SECONDS", 30, validate=POSITIVE)
JOB_DEADLINE_SECONDS = env.int("JOB_DEADLINE_SECONDS", 1800, validate=POSITIVE)
JOB_MAX_ATTEMPTS = env.int("JOB_MAX_ATTEMPTS", 3, validate=POSITIVE)
LEASE_SECONDS = env.int("LEASE_SECONDS", 30, validate=POSITIVE)
DOWNLOAD_TIMEOUT_SECONDS = env.int("DOWNLOAD_TIMEOUT_SECONDS", 120, validate=POSITIVE)
MAX_VIDEO_BYTES = env.int("MAX_VIDEO_BYTES", 512 * 1024 * 1024, validate=POSITIVE)

# --- Background work: django-q2 wakes the worker, the job table is the truth ------------------------------------------
WORKER_PROCESSES = env.int("WORKER_PROCESSES", 2, validate=POSITIVE)
_TASK_TIMEOUT = DOWNLOAD_TIMEOUT_SECONDS + 120
_QUEUE_LIMIT = WORKER_PROCESSES
Q_CLUSTER = {
    "name": "videoplatform",
    "orm": "default",
    "broker_class": "generation.jobs.queue.NotifiedBroker",
    "workers": WORKER_PROCESSES,
    "timeout": _TASK_TIMEOUT,
    # The retry clock starts when a task is prefetched: shorter than this and tasks run twice
    # (docs/architecture.md).
    "retry": _TASK_TIMEOUT * (1 + -(-(_QUEUE_LIMIT + WORKER_PROCESSES) // WORKER_PROCESSES)) + 10,
    "queue_limit": _QUEUE_LIMIT,
    "save_limit": -1,
    "ack_failures": True,
    "max_attempts": 1,
    "scheduler": False,
    "catch_up": False,
    "label": "Tasks",
}

# --- Telegram ---------------------------------------------------------------------------------------------------------
TELEGRAM_BOT_TOKEN = env.str("TELEGRAM_BOT_TOKEN", "")
TELEGRAM_API_BASE_URL = env.str("TELEGRAM_API_BASE_URL", "https://api.telegram.org/bot")
# Set: Telegram posts updates to this address. Empty: the bot polls.
TELEGRAM_WEBHOOK_URL = env.str("TELEGRAM_WEBHOOK_URL", "")
if TELEGRAM_WEBHOOK_URL and not TELEGRAM_WEBHOOK_URL.endswith("/telegram/webhook"):
    raise ImproperlyConfigured(
        "TELEGRAM_WEBHOOK_URL must be this site's address with /telegram/webhook behind it"
    )

# --- Files ------------------------------------------------------------------------------------------------------------
STATIC_URL = "/static/"
STATIC_ROOT = env.path("STATIC_ROOT", DATA_DIR / "static")
STATICFILES_DIRS = [BASE_DIR / "videoplatform" / "static"]
MEDIA_ROOT = env.path("MEDIA_ROOT", DATA_DIR / "media")
WORK_DIR = env.path("WORK_DIR", DATA_DIR / "work")
# Clips are private: other users of the machine must not read files for which the site answers 404.
FILE_UPLOAD_PERMISSIONS = 0o600
FILE_UPLOAD_DIRECTORY_PERMISSIONS = 0o700
S3_BUCKET = env.str("S3_BUCKET", "")
STORAGES: dict[str, Any] = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
if S3_BUCKET:
    STORAGES["default"] = {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {
            "bucket_name": S3_BUCKET,
            "endpoint_url": env.str("S3_ENDPOINT_URL", "") or None,
            "region_name": env.str("S3_REGION", "") or None,
            "access_key": env.str("S3_ACCESS_KEY_ID", "") or None,
            "secret_key": env.str("S3_SECRET_ACCESS_KEY", "") or None,
            "default_acl": "private",
            "file_overwrite": True,
        },
    }

# --- Security ---------------------------------------------------------------------------------------------------------
HTTPS = SITE_URL.startswith("https://")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = LANGUAGE_COOKIE_SECURE = HTTPS
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^metrics$"]  # probes come over plain HTTP from inside
METRICS_TOKEN = env.str("METRICS_TOKEN", "")
SECURE_HSTS_SECONDS = env.int("SECURE_HSTS_SECONDS", 365 * 24 * 3600 if HTTPS else 0, validate=NOT_NEGATIVE)
# Other host names of the operator are not this service's to bind, nor is the browsers' own list.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]
BEHIND_PROXY = env.bool("BEHIND_PROXY", False)
# Without a proxy that says how a request came, all of them seem to be plain.
SECURE_SSL_REDIRECT = env.bool("SECURE_SSL_REDIRECT", HTTPS and BEHIND_PROXY)
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if BEHIND_PROXY else None
ALLAUTH_TRUSTED_PROXY_COUNT = int(BEHIND_PROXY)
X_FRAME_OPTIONS = "DENY"
# Nothing is uploaded here: prompts and forms are small.
MAX_REQUEST_BYTES = 4 * 1024 * 1024
# Time for the head of a request, and for its body before the body needs a minimum speed.
REQUEST_SECONDS = env.float("REQUEST_SECONDS", 20.0, validate=POSITIVE)
# Connections that one web process serves at once. Behind a proxy all of them come from it.
MAX_CONNECTIONS = env.int("MAX_CONNECTIONS", 400, validate=POSITIVE)
CONNECTIONS_PER_SOURCE = env.int(
    "CONNECTIONS_PER_SOURCE", MAX_CONNECTIONS if BEHIND_PROXY else MAX_CONNECTIONS // 2, validate=POSITIVE
)
ACCESS_LOG = env.bool("ACCESS_LOG", False)
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "media-src": [SELF],
        "connect-src": [SELF],
        "font-src": [SELF],
        "manifest-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    },
}
# What is added to it: Unfold's Alpine evaluates attributes, and both set styles.
LOOSER_POLICIES = {
    "/admin/": {"script-src": [UNSAFE_EVAL], "style-src": [UNSAFE_INLINE]},
    "/v1/docs": {"style-src": [UNSAFE_INLINE]},
}

# --- REST -------------------------------------------------------------------------------------------------------------
REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["generation.api.auth.ApiKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "generation.api.auth.AnyAccept",
    "DEFAULT_PARSER_CLASSES": [
        "generation.api.auth.PlainJSONParser",
        "rest_framework.parsers.MultiPartParser",
        "rest_framework.parsers.FormParser",
    ],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "generation.api.errors.handle",
}
# Live event streams: a comment keeps proxies from cutting them; the session or key is checked again.
EVENTS_HEARTBEAT_SECONDS = env.float("EVENTS_HEARTBEAT_SECONDS", 15.0, validate=POSITIVE)
EVENTS_RECHECK_SECONDS = env.float("EVENTS_RECHECK_SECONDS", 60.0, validate=POSITIVE)
SPECTACULAR_SETTINGS = {
    "TITLE": "Video platform API",
    "DESCRIPTION": "Text to video. Clients written against OpenAI's /v1/videos work here by changing the base URL.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
}

# --- Language and time ------------------------------------------------------------------------------------------------
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("ru", "Русский")]
LOCALE_PATHS = [BASE_DIR / "locale"]
LANGUAGE_COOKIE_AGE = 365 * 24 * 3600
LANGUAGE_COOKIE_SAMESITE = "Lax"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = True

FORMAT_MODULE_PATH = ["videoplatform.formats"]

UNFOLD = {
    "SITE_TITLE": "Video platform",
    "SITE_HEADER": "Video platform",
    "SITE_ICON": lambda _: static("favicon.svg"),
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": lambda _: static("favicon.svg")}],
    "SHOW_HISTORY": False,  # of Django's own kind: the audit log holds more, and cannot be changed
    "SIDEBAR": {"navigation": NAVIGATION, "show_search": True, "command_search": True},
    "COMMAND": {"search_callback": "accounts.admin.search.palette"},
    "STYLES": [lambda request: static("admin.css")],
    # The site's accent; 500 is the colour of links on dark pages.
    "COLORS": {
        "primary": {
            "50": "oklch(96.2% .018 279)",
            "100": "oklch(93% .034 279)",
            "200": "oklch(87% .065 279)",
            "300": "oklch(80% .11 279)",
            "400": "oklch(75% .14 279)",
            "500": "oklch(70% .17 280)",
            "600": "oklch(49.5% .21 278)",
            "700": "oklch(45% .2 278)",
            "800": "oklch(39% .18 278)",
            "900": "oklch(35% .14 279)",
            "950": "oklch(26% .09 281)",
        }
    },
    "DASHBOARD_CALLBACK": "generation.staff.home.context",
    "SCRIPTS": [lambda request: static("submit_once.js")],
}

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name} {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
    "loggers": {
        "httpx": {"level": "WARNING"},  # one line a health check is noise, and its URLs may hold a bot token
        "django-q": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
    },
}

# django-q2 puts the working directory first in its process titles; nothing else reads this.
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "videoplatform.settings")
