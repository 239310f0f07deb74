# A node as a container:
#
#   docker build -t twisted-kvs .
#   docker run -p 8081:8080 --net=mynet --ip=10.0.0.21 \
#       -e K=3 -e VIEW=10.0.0.21:8080,... -e IPPORT=10.0.0.21:8080 twisted-kvs
#
# Any image that has Python 3.11 or newer with venv will do as base, and CA certificates
# where dependencies come from an index.  deploy/base_image.sh makes one from Debian's
# packages where no registry can be reached.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
# Another index than pip's own, for those who have one; not in the image that comes out.
ARG PIP_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# What changes seldom comes first, so that it is built once: exactly the files that were
# locked.  The venv that is copied has no pip in it; that of the other one fills it.
COPY deploy/requirements.lock deploy/build.lock /locks/
RUN python3 -m venv /opt/build \
    && python3 -m venv --without-pip /opt/kvs \
    && /opt/build/bin/pip install --require-hashes -r /locks/build.lock \
    && /opt/build/bin/pip --python /opt/kvs/bin/python3 install \
        --only-binary :all: --require-hashes -r /locks/requirements.lock \
    # Twisted's own tests: 18 MB.
    && find /opt/kvs/lib -path '*/twisted/*' -type d -name test -prune \
        -exec rm -r {} +
COPY . /source
RUN /opt/build/bin/pip wheel --no-deps --no-index --no-build-isolation \
        --wheel-dir /wheel /source \
    && /opt/build/bin/pip --python /opt/kvs/bin/python3 install \
        --no-deps --no-index /wheel/*.whl \
    # Before anything else is imported: a SIGTERM in that time would be lost.
    && echo 'import twisted_kvs.first_process as first; first.die_of_signals_as_others()' \
        > "$(echo /opt/kvs/lib/python3*/site-packages)/kvs-first-process.pth" \
    # Twisted writes its cache of plugins where it is installed: only root may.  It must
    # be newer than every plugin, in whole seconds.
    && /opt/kvs/bin/twistd --help > /dev/null \
    && touch -d '+1 minute' \
        /opt/kvs/lib/python3*/site-packages/twisted/plugins/dropin.cache

FROM ${BASE}
# What installs packages is not needed any more, and no CA of whoever has built this.
RUN useradd --system --user-group --no-create-home --uid 10001 kvs \
    && install -d -o kvs -g kvs /data \
    && rm -rf /etc/ssl/certs/pip.pem /usr/share/python-wheels \
        /usr/lib/python3*/ensurepip /usr/local/lib/python3*/ensurepip \
        /usr/local/lib/python3*/site-packages/pip* /usr/local/bin/pip*
COPY --from=build /opt/kvs /opt/kvs
ENV PATH=/opt/kvs/bin:$PATH \
    PIP_CERT= \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    KVS_DATA_DIR=/data
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
# Whether the process answers at all; who may be asked: GET /health/ready.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python3", "-m", "twisted_kvs.healthcheck"]
STOPSIGNAL SIGTERM
# In a container every process is number 1: a pid file would stop the next start.
CMD ["twistd", "--nodaemon", "--pidfile=", "kvs"]
# At the end: another revision of the same files is built from what is there.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="twisted-kvs" \
      org.opencontainers.image.description="A distributed, always available, eventually consistent key-value store" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
