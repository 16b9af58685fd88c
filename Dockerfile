# Two stages: the first makes a virtual environment, the second takes it over and nothing else of the first.
#
#   docker build -t pullthrough .
#   docker run -p 5000:5000 -v pullthrough-cache:/var/cache/pullthrough pullthrough
#
# It needs no BuildKit: `DOCKER_BUILDKIT=0 docker build` and `buildah bud` make the same image.

ARG BASE=python:3.12-slim

FROM ${BASE} AS builder

# For a package index of your own; pip reads them as they are named. They stay in this stage's history only, but they do
# stay: for an index that wants a password, build where it can be reached without one.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST

WORKDIR /src
RUN python3 -m venv /opt/pullthrough

# The dependencies on their own: this layer is made again when they change, not with every change of the code. Those of the
# extras too, so that one image runs alone or among replicas, and intercepts: they are imported where that is configured.
COPY pyproject.toml ./
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; e = p['optional-dependencies']; print(*p['dependencies'], *e['distributed'], *e['intercept'], sep='\n')" \
        > requirements.txt \
    && /opt/pullthrough/bin/pip install --no-cache-dir --disable-pip-version-check -r requirements.txt

# pip leaves with its work done: what runs installs nothing.
COPY README.md LICENSE ./
COPY proxy/ proxy/
RUN /opt/pullthrough/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps . \
    && /opt/pullthrough/bin/pip uninstall --yes --quiet pip setuptools


FROM ${BASE}

# Numbers, not names: Kubernetes' runAsNonRoot cannot look a name up.
RUN groupadd --gid 65532 pullthrough \
    && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin pullthrough \
    && install -d -m 0700 -o 65532 -g 65532 /var/cache/pullthrough

COPY --from=builder /opt/pullthrough /opt/pullthrough
COPY config/proxy.yaml /etc/pullthrough/proxy.yaml

ENV PATH=/opt/pullthrough/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PULLTHROUGH_CACHE__DIRECTORY=/var/cache/pullthrough

USER 65532:65532

# After the folder has its owner: a new volume takes it over from the image.
VOLUME /var/cache/pullthrough

# Pulls; and health and metrics, on loopback unless the configuration says otherwise.
EXPOSE 5000 5001

# Ready, not just alive: who waits for "healthy" wants to pull. No proxy, or HTTP_PROXY would be asked for loopback.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-I", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:5001/readyz', timeout=4)"]

# Running bodies may end within shutdown_timeout (60 s): give `docker stop` as long, with `--time 70`.
STOPSIGNAL SIGTERM

ENTRYPOINT ["pullthrough"]
CMD ["serve", "--config", "/etc/pullthrough/proxy.yaml"]
