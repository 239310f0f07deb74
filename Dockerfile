# A node as a container:
#   docker build -t twisted-kvs .
#   docker run -p 8081:8080 --net=mynet --ip=10.0.0.21 \
#       -e K=3 -e VIEW=10.0.0.21:8080,... -e IPPORT=10.0.0.21:8080 twisted-kvs

FROM python:3-slim AS build
COPY . /source
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir /source \
    # Twisted writes its cache of plugins where it is installed: only root may.
    && /opt/venv/bin/twistd --help > /dev/null

FROM python:3-slim
RUN useradd --system --user-group --no-create-home --uid 10001 kvs \
    && install -d -o kvs -g kvs /data
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    KVS_DATA_DIR=/data
USER kvs
WORKDIR /data
VOLUME /data
EXPOSE 8080
# In a container every process is number 1: a pid file would stop the next start.
CMD ["twistd", "--nodaemon", "--pidfile=", "kvs"]
