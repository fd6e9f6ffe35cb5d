# Two images: docker build --target cpu -t minitron .    docker build --target cuda -t minitron:cuda .
#   docker run --rm -v "$PWD:/models" minitron quantize /models/checkpoint Q4_K_M
#   docker run --rm --gpus all -v "$PWD:/models" minitron:cuda chat /models/model-Q4_K_M.gguf
# Versions are those of requirements.lock. llama.cpp is compiled for any x86-64 processor with AVX2
# (cpu) or any NVIDIA GPU from compute capability 8.0 on (cuda; --build-arg CUDA_ARCH=90 for one kind).

FROM python:3.11-slim-bookworm AS compiler
RUN apt-get update && apt-get install -y --no-install-recommends g++ make git && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN scripts/container_install.sh /opt/minitron

FROM python:3.11-slim-bookworm AS cpu
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=compiler /opt/minitron /opt/minitron
ENV PATH=/opt/minitron/bin:$PATH HF_HOME=/models/.huggingface
WORKDIR /models
ENTRYPOINT ["minitron"]
CMD ["--help"]

FROM nvidia/cuda:12.6.3-devel-ubuntu24.04 AS cuda-compiler
ARG CUDA_ARCH=80
RUN apt-get update && apt-get install -y --no-install-recommends g++ make git python3 python3-venv python3-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN CUDA=1 CUDA_ARCH=${CUDA_ARCH} PYTHON=python3 scripts/container_install.sh /opt/minitron

FROM nvidia/cuda:12.6.3-runtime-ubuntu24.04 AS cuda
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 python3 && rm -rf /var/lib/apt/lists/*
COPY --from=cuda-compiler /opt/minitron /opt/minitron
ENV PATH=/opt/minitron/bin:$PATH HF_HOME=/models/.huggingface
WORKDIR /models
ENTRYPOINT ["minitron"]
CMD ["--help"]
