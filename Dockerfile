# The service as an image. It drives the engine whose socket it is given, so what it mounts into jobs must be there under the same
# path on the host: see docker-compose.yml.
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release --package solverd --bin solverd

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/solverd /usr/local/bin/solverd
ENV SOLVERD_LISTEN=0.0.0.0:8000 SOLVERD_S3_LISTEN=0.0.0.0:9000
EXPOSE 8000 9000
ENTRYPOINT ["solverd"]
CMD ["serve"]
