# syntax=docker/dockerfile:1
# openvis-rt for Jetson Orin with JetPack 6: TensorRT 10.3, CUDA 12.6 and Python 3.10 are the base
# image's own. Built on the board, in the project's folder:
#   docker build -f docker/jetpack6.Dockerfile -t openvis:jetpack6 .
ARG JETPACK=r36.4.0

FROM nvcr.io/nvidia/l4t-jetpack:${JETPACK} AS build
WORKDIR /src
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
# the environment sees the image's own tensorrt; the extra brings everything else
RUN python3 -m venv --system-site-packages /opt/openvis
COPY pyproject.toml README.md LICENSE ./
COPY openvis_rt ./openvis_rt
RUN /opt/openvis/bin/pip install --no-cache-dir '.[jetson]' 'cuda-python<13'

FROM nvcr.io/nvidia/l4t-jetpack:${JETPACK}
ARG VERSION=unreleased
LABEL org.opencontainers.image.title="openvis-rt" \
      org.opencontainers.image.description="Open-vocabulary video instance segmentation on TensorRT, for Jetson Orin" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/l4t-jetpack:r36.4.0"
# the board's GPU and its cameras are devices of the group video; a number without a group keeps it
RUN useradd --uid 10001 --user-group --groups video --no-create-home openvis \
    && install --directory --owner=openvis --group=openvis /out /cache
COPY --from=build /opt/openvis /opt/openvis
ENV PATH=/opt/openvis/bin:$PATH \
    XDG_CACHE_HOME=/cache \
    PYTHONUNBUFFERED=1
WORKDIR /out
USER 10001
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s \
    CMD ["openvis", "doctor", "--json", "--needs", "run: engines on a GPU"]
ENTRYPOINT ["openvis"]
CMD ["--help"]
