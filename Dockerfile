# One replica. Configuration is the environment: SOCKET_ADDRESS (as peers reach it), VIEW (whom to ask), docs/settings.md.
#
#   docker build -t causeway .
#   docker run --rm -p 8090:8090 -e SOCKET_ADDRESS=127.0.0.1:8090 -e KV_BIND=0.0.0.0:8090 causeway

FROM python:3.12-slim AS build
WORKDIR /app
COPY requirements.txt .
RUN python -m venv /venv \
 && /venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.txt
COPY manage.py ./
COPY store store
COPY replication replication
COPY kvsite kvsite
RUN /venv/bin/python -m compileall -q /app

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home causeway
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    SOCKET_ADDRESS=127.0.0.1:8090 KV_BIND=0.0.0.0:8090 VIEW=
WORKDIR /app
COPY --from=build /venv /venv
COPY --from=build /app /app
USER causeway
EXPOSE 8090
# Ready means: in the view and caught up. A replica that joins is "starting", one that was removed "unhealthy".
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-m", "kvsite.healthcheck"]
# Exec form: SIGTERM reaches the replica itself, which hands over what only it has (10 s at most) and exits.
STOPSIGNAL SIGTERM
CMD ["python", "manage.py", "run_replica"]
