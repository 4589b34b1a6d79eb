# The web app in a container, on the processor: no CUDA, and nobody is root.
#
#   docker build --build-arg TORCH_INDEX=ADDRESS -t ssm-metarl .
#   docker run --rm -p 127.0.0.1:7860:7860 ssm-metarl
#
# ADDRESS is that of PyTorch's CPU builds, which its "Get started" page gives; without it pip brings
# gigabytes of CUDA packages, and everything works the same.
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 app
WORKDIR /home/app/ssm-metarl

ARG TORCH_INDEX
COPY constraints.txt .
RUN if [ -n "$TORCH_INDEX" ]; then export PIP_INDEX_URL="$TORCH_INDEX"; fi \
    && pip install --no-cache-dir "$(grep '^torch==' constraints.txt)" \
    && grep -v '^torch==' constraints.txt > /tmp/constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY ssm_metarl ssm_metarl
COPY app.py .
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt --editable '.[web,search]' \
    && chown -R app:app /home/app

USER app
# The kernels are compiled for the processor that builds the image; another one compiles them again.
RUN python -m ssm_metarl.app.warm_up adapting training

ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860
EXPOSE 7860
CMD ["python", "app.py"]
