#!/usr/bin/env bash
# Builds the images of the example solvers into the local Docker engine: images.sh [sleeper|calculix|all].
# An image whose sources have not changed is left alone.
#
# What makes an image a solver are its labels: metadata.json, one label `io.simcore.FIELD` for each field,
# and settings.json, the label `simcore.service.settings`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

base=debian:bookworm-slim
solver=
source=

# Prints what `docker build` takes as labels, one per line: labels VERSION
labels() {
    python3 - "$solver" "$1" <<'PYTHON'
import json, sys
folder, version = sys.argv[1:]
metadata = json.load(open(f"{folder}/metadata.json")) | {"version": version}
for field, value in metadata.items():
    print(f"io.simcore.{field}=" + json.dumps({field: value}))
print("simcore.service.settings=" + json.dumps(json.load(open(f"{folder}/settings.json"))))
PYTHON
}
metadata() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$solver/metadata.json" "$1"; }

# The hash of everything that an image is made of.
hash_sources() {
    (cd "$solver" && find . -type f ! -name '*.md' | LC_ALL=C sort | while read -r file; do echo "$file" && cat "$file"; done) |
        cat - "$0" | sha256
}
is_built() { [ "$(docker image inspect --format '{{index .Config.Labels "solverd.source"}}' "$1" 2>/dev/null)" = "$source" ]; }

# build FOLDER VERSION…: builds FOLDER (Dockerfile and what it copies) once for each version.
build() {
    local context=$1 version tag label arguments
    shift
    for version in "$@"; do
        tag=$(metadata key):$version
        arguments=(--tag "$tag" --label "solverd.source=$source")
        while read -r label; do arguments+=(--label "$label"); done < <(labels "$version")
        # Without BuildKit the older builder does; where it is there, the older one may be gone.
        docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0
        # The network is for apt, and the host's works wherever the host's own apt does.
        say "building $tag"
        docker build --network host "${arguments[@]}" "$context" >"$CACHE/build.log" 2>&1 </dev/null || {
            tail -n 20 "$CACHE/build.log" >&2
            die "docker could not build $tag (whole log: $CACHE/build.log)"
        }
    done
}

all_built() {
    local version
    for version in "$@"; do is_built "$(metadata key):$version" || return 1; done
}

sleeper() {
    solver=$ROOT/solvers/sleeper
    source=$(hash_sources)
    local versions=(2.0.2 2.1.1 2.1.6)
    ! all_built "${versions[@]}" || return 0

    "$ROOT/scripts/rust.sh"
    [ "$(uname -s)" = Linux ] || die "the sleeper is compiled for the machine it is built on, and its image needs a Linux program."
    local context=$CACHE/sleeper
    mkdir -p "$context"
    cp "$solver/Dockerfile" "$context"
    rustc --edition 2024 -O -C target-feature=+crt-static -C panic=abort -C strip=symbols -o "$context/sleeper" "$solver/sleeper.rs"
    build "$context" "${versions[@]}"
}

calculix() {
    solver=$ROOT/solvers/calculix
    source=$(hash_sources)
    local version
    version=$(metadata version)
    ! all_built "$version" || return 0

    base_image
    build "$solver" "$version"
}

# Prints the address of the Debian archive that this machine's own apt uses.
archive() {
    local site
    # shellcheck disable=SC2016 # apt fills these in
    site=$(apt-get indextargets --format '$(SITE) $(RELEASE)' | awk -v release="$(os_release VERSION_CODENAME)" '$2 == release { print $1; exit }')
    # Cloud images name a file with a list of addresses.
    case $site in
    mirror+file:*) awk '!/^#/ && NF { print $1; exit }' "${site#mirror+file:}" ;;
    *) echo "$site" ;;
    esac
}

# Pulls the base image, or makes one like it: there are machines that reach their distribution's archive and no registry.
base_image() {
    ! docker image inspect "$base" >/dev/null 2>&1 || return 0
    local can_make=no limit=600 packages=apt site root
    if is_root && [ "$(os_release ID)" = debian ] && has_apt; then
        can_make=yes
        limit=90
    fi
    say "pulling $base"
    bounded "$limit" docker pull --quiet "$base" >"$CACHE/pull.log" 2>&1 </dev/null && return 0
    [ "$can_make" = yes ] ||
        die "cannot pull $base:" "$(tail -n 1 "$CACHE/pull.log")" \
            "Only root on Debian can make it without a registry; otherwise import it by hand: docker load or docker import."

    have debootstrap || apt_install debootstrap
    [ -n "$(archive)" ] || apt-get update >/dev/null 2>&1
    site=$(archive)
    [ -n "$site" ] || die "cannot pull $base, and apt does not tell where the Debian archive is (apt-get indextargets)."
    say "cannot pull $base; making it with debootstrap (about a minute)"
    root=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$root'" EXIT
    # An archive behind TLS needs certificates inside, too.
    case $site in https:*) packages=$packages,ca-certificates ;; esac
    debootstrap --variant=minbase --include="$packages" bookworm "$root" "$site" \
        >"$CACHE/debootstrap.log" 2>&1 || { tail -n 5 "$CACHE/debootstrap.log" >&2 && die "debootstrap failed (whole log: $CACHE/debootstrap.log)"; }
    # 'slim' means without documentation and translations, now and for what is installed later.
    printf 'path-exclude /usr/share/%s/*\n' doc man locale info >"$root/etc/dpkg/dpkg.cfg.d/slim"
    tar -C "$root" -c --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
        --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' --exclude='./dev/*' . |
        docker import --change 'CMD ["bash"]' --change 'LABEL solverd.base=debootstrap' - "$base" >/dev/null
    rm -rf "$root"
    trap - EXIT
}

"$ROOT/scripts/docker.sh"
have python3 || apt_install python3
case ${1:-all} in
sleeper) sleeper ;;
calculix) calculix ;;
all)
    # The tests put a static busybox into images of their own, and these into a registry.
    [ -x /bin/busybox ] || apt_install busybox-static
    have docker-registry || apt_install docker-registry
    sleeper
    calculix
    ;;
*) die "usage: images.sh [sleeper|calculix|all]" ;;
esac
