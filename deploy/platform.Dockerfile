# The platform: web, worker, reconciler and bot are the same image with another command.
# Build from the repository root: docker build -f deploy/platform.Dockerfile -t videoplatform .
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 DATA_DIR=/data
WORKDIR /app
COPY requirements/platform.lock requirements/platform.lock
RUN pip install --no-deps --require-hashes -r requirements/platform.lock
COPY manage.py ./
COPY videoplatform videoplatform
COPY accounts accounts
COPY generation generation
COPY telegram_bot telegram_bot
COPY templates templates
COPY locale locale
RUN useradd --create-home app && install -d -o app /data
USER app
VOLUME /data
EXPOSE 8000
CMD ["sh", "-c", "python -m videoplatform.bootstrap && exec python -m gunicorn videoplatform.asgi:application --worker-class videoplatform.web_worker.WebWorker --workers ${WEB_PROCESSES:-2} --bind 0.0.0.0:8000 --graceful-timeout 5 --timeout 60 --no-control-socket --log-level warning"]
