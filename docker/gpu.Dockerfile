# syntax=docker/dockerfile:1
# openvis-rt with TensorRT 10.16 and CUDA 13.2, which are the base image's own: for x86 with an NVIDIA
# GPU, and for Jetson with JetPack 7.2 (arm64). Built in the project's folder:
#   docker build -f docker/gpu.Dockerfile -t openvis:gpu .
ARG TENSORRT=26.05-py3

FROM nvcr.io/nvidia/tensorrt:${TENSORRT} AS build
WORKDIR /src
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
# the environment sees the image's own tensorrt; the extra brings everything else
RUN python3 -m venv --system-site-packages /opt/openvis
COPY pyproject.toml README.md LICENSE ./
COPY openvis_rt ./openvis_rt
RUN /opt/openvis/bin/pip install --no-cache-dir '.[jetson]'

FROM nvcr.io/nvidia/tensorrt:${TENSORRT}
ARG VERSION=unreleased
LABEL org.opencontainers.image.title="openvis-rt" \
      org.opencontainers.image.description="Open-vocabulary video instance segmentation on TensorRT" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/tensorrt:26.05-py3"
RUN useradd --uid 10001 --user-group --no-create-home openvis \
    && install --directory --owner=openvis --group=openvis /out /cache
COPY --from=build /opt/openvis /opt/openvis
# "video" lets PyAV use NVENC
ENV PATH=/opt/openvis/bin:$PATH \
    XDG_CACHE_HOME=/cache \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
WORKDIR /out
USER 10001
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s \
    CMD ["openvis", "doctor", "--json", "--needs", "run: engines on a GPU"]
ENTRYPOINT ["openvis"]
CMD ["--help"]
