#!/usr/bin/env bash
# Proves the device half on aarch64 Linux, emulated by qemu-user: the package with its NEON kernels, built by a cross
# compiler, runs bundles of the bundled model in Debian's arm64 Python with ONNX Runtime's wheel for aarch64.
#
#     tools/check_aarch64.sh [--work DIR] [--text-bytes N] [--no-tests]
#
# On Debian, with apt-get install qemu-user g++-aarch64-linux-gnu cmake, and .venv (make venv). Packages are downloaded
# and unpacked in DIR (build/aarch64) alone; what is there is used again. Ends with 0 if every limit held.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$root/build/aarch64 text_bytes=1024 tests=yes
while [ $# -gt 0 ]; do
    case $1 in
        --work) mkdir -p "$2" && work=$(cd "$2" && pwd) && shift 2 ;;
        --text-bytes) text_bytes=$2 && shift 2 ;;
        --no-tests) tests=no && shift ;;
        *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
done
for need in qemu-aarch64 aarch64-linux-gnu-g++ cmake apt-get dpkg-deb; do
    command -v "$need" >/dev/null || { echo "check_aarch64: there is no $need (Debian: apt install qemu-user" \
        "g++-aarch64-linux-gnu cmake)" >&2 && exit 2; }
done
here=$root/.venv/bin
[ -x "$here/edgeblt" ] || { echo "check_aarch64: there is no .venv; run make venv" >&2 && exit 2; }
platforms=(--python-version 3.11 --implementation cp --only-binary=:all: --platform linux_aarch64)
for glibc in 2_17 2_26 2_27 2_28; do platforms+=(--platform "manylinux_${glibc}_aarch64"); done
platforms+=(--platform manylinux2014_aarch64)
emulated=$work/venv/bin/python
site=$work/venv/lib/python3.11/site-packages

# Debian's arm64 Python, unpacked and not installed: nothing of this system changes.
debian_python() {
    mkdir -p "$work"/apt/{lists,archives}/partial "$work/system"
    : >"$work/apt/status"
    cat >"$work/apt.conf" <<END
Dir::State "$work/apt"; Dir::State::status "$work/apt/status"; Dir::State::lists "$work/apt/lists";
Dir::Cache "$work/apt"; Dir::Cache::archives "$work/apt/archives"; APT::Sandbox::User "$(id -un)";
APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Install-Recommends "false";
END
    APT_CONFIG=$work/apt.conf apt-get -qq update
    APT_CONFIG=$work/apt.conf apt-get -qq -y install --download-only python3.11 libstdc++6 >/dev/null
    for package in "$work"/apt/archives/*.deb; do dpkg-deb -x "$package" "$work/system"; done
    # qemu shows the processor of this machine there, in which ONNX Runtime finds nothing that it knows, and crashes.
    mkdir -p "$work/system/proc"
    for core in $(seq 0 $(($(nproc) - 1))); do
        printf 'processor\t: %s\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\n' "$core" \
            "fp asimd crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp i8mm bf16"
        printf 'CPU variant\t: 0x1\nCPU part\t: 0xd40\nCPU revision\t: 1\n\n'
    done >"$work/system/proc/cpuinfo"
}

# A virtual environment whose Python is a script, so that what it starts is emulated as well.
environment() {
    mkdir -p "$work/venv/bin" "$site"
    printf 'home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11\n' >"$work/venv/pyvenv.cfg"
    # NumPy's products with SVE raise floating-point flags under this emulation.
    printf '#!/bin/sh\nexec qemu-aarch64 -cpu max,sve=off -L %s -0 "$0" %s "$@"\n' \
        "$work/system" "$work/system/usr/bin/python3.11" >"$emulated"
    chmod +x "$emulated"
    "$here/python" -m pip install -q --disable-pip-version-check --target "$site" "${platforms[@]}" \
        -c "$root/constraints.txt" numpy onnxruntime rich typer pytest hypothesis onnx onnx-ir safetensors
}

package() {
    rm -rf "$work/wheel" "$site"/edgeblt "$site"/edgeblt-*
    _PYTHON_HOST_PLATFORM=linux-aarch64 CMAKE_ARGS="-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
        -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++" "$here/python" -m pip wheel -q --disable-pip-version-check \
        --no-deps --wheel-dir "$work/wheel" "$root"
    "$here/python" -m pip install -q --disable-pip-version-check --target "$site" "${platforms[@]}" --no-deps \
        --upgrade "$work"/wheel/edgeblt-*.whl
}

[ -e "$work/system/proc/cpuinfo" ] || { echo "Debian's arm64 Python" && debian_python; }
[ -e "$site/onnxruntime" ] || { echo "packages for aarch64" && environment; }
echo "edgeblt for aarch64" && package

export OMP_NUM_THREADS=1 ORT_DISABLE_TELEMETRY=1
edgeblt() { (cd "$work" && "$emulated" -m edgeblt "$@"); }
edgeblt doctor | tee "$work/doctor"
grep -q "instructions  i8mm" "$work/doctor"

# References from transformers, on this machine's own processor.
texts=()
for name in prose code; do
    head -c "$text_bytes" "$root/edgeblt/data/texts/$name.txt" >"$work/$name.txt"
    texts+=(--text "$work/$name.txt")
done
for recipe in fp32 int8 int4; do
    [ -e "$work/$recipe" ] || "$here/edgeblt" export "$root/edgeblt/data/demo" "$work/$recipe" --recipe $recipe --quiet
done >/dev/null
rm -f "$work/reference"
"$here/edgeblt" validate "$work/fp32" --reference "$root/edgeblt/data/demo" "${texts[@]}" --quiet \
    --save-reference-logits "$work/reference" >/dev/null

declare -A limits=(
    [fp32]="--max-kl 1e-9 --min-boundary-agreement 1 --min-top1 1 --min-greedy-agreement 1"
    [int8]="--max-kl 0.005 --max-bpb-increase 0.02 --min-boundary-agreement 0.99 --min-top1 0.97"
    [int4]="--max-kl 0.02 --max-bpb-increase 0.05 --min-boundary-agreement 0.99 --min-top1 0.93"
)
for recipe in fp32 int8 int4; do
    for level in i8mm neon 0; do
        [ "$level" = i8mm ] || [ "$recipe" = int8 ] || continue
        echo "$recipe, EDGEBLT_NATIVE=$level"
        # shellcheck disable=SC2086  # limits are words
        EDGEBLT_NATIVE=$level edgeblt validate $recipe --reference-logits reference --threads 1 --quiet ${limits[$recipe]}
    done
    here_text=$("$here/edgeblt" generate "$work/$recipe" "Once upon a time" --max-new-bytes 48 --threads 1 --quiet)
    there_text=$(edgeblt generate $recipe "Once upon a time" --max-new-bytes 48 --threads 1 --quiet)
    echo "generated here: $here_text" && echo "on aarch64:     $there_text"
done
edgeblt bench int8 --new-bytes 8 --prompt-bytes 32 --repeats 1 --no-bandwidth --threads 1 --quiet --json bench.json >/dev/null
grep -q '"decode_bytes_per_s"' "$work/bench.json" && echo "bench runs (its figures are the emulator's)"

# Tests that need only the device half, onnx and numpy; the suite's own fixtures need torch.
[ $tests = no ] || (cd "$root/tests" && EDGEBLT_NATIVE= "$emulated" -m pytest -q -p no:cacheprovider --noconftest \
    -o addopts= -o filterwarnings=default --hypothesis-profile=ci -m "not slow and not network and not cuda" \
    $(sed 's/#.*//' "$root/tools/aarch64_tests.txt"))
