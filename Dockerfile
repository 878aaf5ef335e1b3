# A GPU image: docker build -t negclip . && docker run --gpus all -v $PWD/runs:/negclip_jax/runs \
#   negclip python launch.py --config=configs/truth.py:vit_b_32 --workdir=runs/b32 ...
# The CUDA libraries come with jax's own wheels; the host needs its driver and the NVIDIA toolkit.
FROM python:3.12-slim
WORKDIR /negclip_jax
ENV PIP_NO_CACHE_DIR=1
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY negclip_jax negclip_jax
RUN pip install --constraint constraints.txt --editable '.[cuda]'
COPY . .
CMD ["python", "launch.py", "--help"]
