# One replica. Its configuration is the environment: docs/settings.md. How to run, secure and prove it: docs/container.md.
#
#   docker build -t causeway .
#   docker run --rm --init -p 8090:8090 causeway

ARG PYTHON=docker.io/library/python:3.12-slim

FROM ${PYTHON} AS build
WORKDIR /app
COPY requirements.txt ./
# Wheels only, each checked against the lock: nothing that is downloaded runs here. Without pip in it, the environment
# cannot change later. The two secrets are optional: a pip.conf and a CA, where packages come from a registry of one's own.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    python -m venv --without-pip /venv \
 && python -m pip --python /venv/bin/python install --no-cache-dir --no-compile --disable-pip-version-check \
        --require-hashes --only-binary :all: --requirement requirements.txt
COPY LICENSE manage.py ./
COPY store store
COPY replication replication
COPY kvsite kvsite
# Compiled here, for at run time nothing may be written; and to be taken without a look at the sources, because their times,
# by which Python tells otherwise, do not survive every copy: a start, and every health check, would compile all it imports.
RUN /venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /venv/lib store replication kvsite

FROM ${PYTHON}
LABEL org.opencontainers.image.title="Causeway" \
      org.opencontainers.image.description="A replica of a causally consistent, in-memory key-value store" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    SOCKET_ADDRESS=127.0.0.1:8090 KV_BIND=0.0.0.0:8090
WORKDIR /app
COPY --from=build /venv /venv
COPY --from=build /app /app
# A number needs no account, and Kubernetes can tell from it that it is not root. Everything belongs to root: it only reads.
USER 10001:10001
EXPOSE 8090
# Ready: in the view and caught up. A replica that joins is "starting", one that was removed "unhealthy".
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-m", "kvsite.healthcheck"]
# Exec form: SIGTERM reaches the replica itself, which hands over what only it has (10 s at most) and exits.
STOPSIGNAL SIGTERM
CMD ["python", "manage.py", "run_replica"]
