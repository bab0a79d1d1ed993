# The GPU node. It needs an NVIDIA driver and the NVIDIA Container Toolkit on the host; torch brings its own CUDA.
# Build from the repository root: docker build -f deploy/node.Dockerfile -t videoplatform-node .
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1
ENV GPU_NODE_HOST=0.0.0.0 GPU_NODE_SAVE_DIR=/data/videos HF_HOME=/data/huggingface
# torch.compile builds its kernels' launchers with a C compiler when the node starts.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements/node.lock requirements/node.lock
RUN pip install torch==2.13.0 && pip install --no-deps --require-hashes -r requirements/node.lock
COPY gpu_node gpu_node
RUN useradd --create-home app && install -d -o app /data
USER app
VOLUME /data
EXPOSE 8081
CMD ["python", "-m", "gpu_node"]
