# CPU image that contains the weights. At run time it needs no network, and no rights beyond reading /input and writing
# /output:
#   docker build --build-arg TORCH_INDEX=… -t lung-nodules .        the index of CPU builds that PyTorch's page names
#   docker run --rm --network none --user "$(id -u):$(id -g)" -v "$PWD/study:/input:ro" -v "$PWD/results:/output" lung-nodules
FROM python:3.12-slim

ARG TORCH_INDEX=
COPY requirements.txt /opt/bundle/requirements.txt
RUN pip install --no-cache-dir "$(grep '^torch==' /opt/bundle/requirements.txt)" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
 && pip install --no-cache-dir -r /opt/bundle/requirements.txt

COPY LICENSE /opt/bundle/LICENSE
COPY configs /opt/bundle/configs
COPY models /opt/bundle/models
COPY scripts /opt/bundle/scripts
RUN python -m compileall -q /opt/bundle/scripts \
 && useradd --uid 10001 --no-create-home reader

# Any user may run it: libraries keep their caches in /tmp, where everyone may write.
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONWARNINGS=ignore
USER reader
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "monai.bundle", "run", "inference", "--config_file", "/opt/bundle/configs/inference.json", "--input", "/input", "--output_dir", "/output"]
