# syntax=docker/dockerfile:1
# openvis-rt on a processor. Built in the project's folder:
#   docker build -f docker/cpu.Dockerfile -t openvis:cpu .
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /src
RUN python -m venv /opt/openvis
COPY pyproject.toml README.md LICENSE ./
COPY openvis_rt ./openvis_rt
RUN /opt/openvis/bin/pip install --no-cache-dir '.[cpu]'

FROM python:${PYTHON}
ARG VERSION=unreleased
LABEL org.opencontainers.image.title="openvis-rt" \
      org.opencontainers.image.description="Open-vocabulary video instance segmentation on ONNX Runtime, on a processor" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.12.12-slim-bookworm"
RUN useradd --uid 10001 --user-group --no-create-home openvis \
    && install --directory --owner=openvis --group=openvis /out /cache
COPY --from=build /opt/openvis /opt/openvis
ENV PATH=/opt/openvis/bin:$PATH \
    XDG_CACHE_HOME=/cache \
    PYTHONUNBUFFERED=1
WORKDIR /out
USER 10001
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s \
    CMD ["openvis", "doctor", "--json", "--needs", "run: onnxruntime on cpu"]
ENTRYPOINT ["openvis"]
CMD ["--help"]
