# One replica. Environment variables configure it: docs/settings.md. How to run, secure and test the image:
# docs/container.md.
#
#   docker build -t causeway .
#   docker run --rm --init -p 127.0.0.1:8090:8090 -e KV_OPEN=true causeway

ARG PYTHON=docker.io/library/python:3.12-slim

FROM ${PYTHON} AS build
WORKDIR /app
COPY requirements.txt ./
# Only wheels, each with a locked hash: the build runs no downloaded code. The environment contains no pip, so nothing
# can be installed into it later. The two secrets are optional: a pip.conf and a CA, for a private package registry.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    python -m venv --without-pip /venv \
 && python -m pip --python /venv/bin/python install --no-cache-dir --no-compile --disable-pip-version-check \
        --require-hashes --only-binary :all: --requirement requirements.txt
COPY LICENSE manage.py ./
COPY store store
COPY replication replication
COPY kvsite kvsite
# In the repository, store/client is a link to it (docs/decisions/0038-a-wheel-for-servers-and-one-for-clients.md).
COPY clients/python/src/causeway_client store/client
# What a replica never reads: translations, Redoc, source maps, geography. It is a third of the packages.
RUN rm -r store/client/django /venv/lib/python3*/site-packages/django/contrib/gis \
        /venv/lib/python3*/site-packages/drf_spectacular_sidecar/static/drf_spectacular_sidecar/redoc \
 && find /venv \( -name '*.po' -o -name '*.mo' -o -name '*.map' \) -delete
# Compile here, because the running container cannot write files. The compiled files must be used without a comparison
# with the sources: Python compares modification times, which not every copy keeps. Otherwise every start and every
# health check would compile everything that it imports.
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
# A numeric user needs no account, and lets Kubernetes verify that it is not root. Root owns all files, so that the
# replica can only read them.
USER 10001:10001
EXPOSE 8090
# Healthy means ready: in the view and caught up. A joining replica is "starting", a removed one "unhealthy".
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-m", "kvsite.healthcheck"]
# Exec form, so that SIGTERM reaches the replica itself. It sends its unsent updates to a peer (10 s at most) and exits.
STOPSIGNAL SIGTERM
CMD ["python", "manage.py", "run_replica"]
