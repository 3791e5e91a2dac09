# One image for every Taximeter service: `docker run taximeter run meter`.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
COPY --from=ghcr.io/astral-sh/uv:0.9 /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PROJECT_ENVIRONMENT=/opt/taximeter
WORKDIR /src
COPY . .
RUN uv sync --locked --no-default-groups --extra streams --extra billing --extra inference --extra otel --no-editable
# The meter's inner loop is compiled here, for the image that runs has no compiler.
RUN /opt/taximeter/bin/python -m taximeter_streams.meter.kernel

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/taximeter --create-home taximeter
COPY --from=build /opt/taximeter /opt/taximeter
ENV PATH=/opt/taximeter/bin:$PATH TAXIMETER_HOST=0.0.0.0 TAXIMETER_STATE_DIR=/var/lib/taximeter
USER taximeter
WORKDIR /var/lib/taximeter
VOLUME /var/lib/taximeter
ENTRYPOINT ["taximeter"]
