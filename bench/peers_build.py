"""What bench/peers needs before it can measure: a virtual environment with CTranslate2 and OpenVINO, llama.cpp built
from the source package of llama-cpp-python for this very machine, and the model files. Each step is skipped when
its result is there; everything lies in build/peers-venv."""
import os
import shutil
import subprocess
import sys
import tarfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HERE = os.path.join(ROOT, "bench")
VENV = os.path.join(ROOT, "build", "peers-venv")
PYTHON = os.path.join(VENV, "bin", "python")
MODELS = os.path.join(VENV, "models")
DRIVER = os.path.join(VENV, "peers_llama")
NATIVE = os.path.join(VENV, "llama-native", "bin")
AVX2 = os.path.join(VENV, "llama-avx2", "bin")
SERVER = os.path.join(NATIVE, "llama-server")
RPC_SERVER = os.path.join(NATIVE, "ggml-rpc-server")
REAL = os.path.join(ROOT, ".cache", "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
# Numbers of enum llama_ftype.
FTYPES = {"Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "BF16": 32, "F32": 0}
COMMON = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_LLAMAFILE=ON", "-DGGML_OPENMP=ON", "-DGGML_RPC=ON",
          "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_TOOLS=ON",
          "-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF",
          "-DLLAMA_OPENSSL=OFF", "-DGGML_CCACHE=OFF"]
# -march=native names the machine's instruction sets one by one to gcc, so VNNI and BF16 are among them where
# the processor has them; check_levels() asks the finished library.
BUILDS = {"llama-native": ["-DGGML_NATIVE=ON"],
          "llama-avx2": ["-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON", "-DGGML_BMI2=ON",
                         "-DGGML_AVX512=OFF"]}


def say(text):
    print(f"# {text}", file=sys.stderr, flush=True)


def run(*command, **options):
    say(" ".join(command))
    return subprocess.run(command, check=True, **options)


def source():
    """The folder of llama.cpp inside the source package; fetched and unpacked once."""
    folder = os.path.join(VENV, "src")
    os.makedirs(folder, exist_ok=True)
    found = [name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name))]
    if not found:
        # To name its version, the package asks its build system, which must be there and reachable.
        run(PYTHON, "-m", "pip", "-q", "install", "scikit-build-core", "ninja")
        path = os.path.join(VENV, "bin") + ":" + os.environ["PATH"]
        run(PYTHON, "-m", "pip", "-q", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
            "-d", folder, "llama-cpp-python", env=dict(os.environ, PATH=path))
        for name in os.listdir(folder):
            with tarfile.open(os.path.join(folder, name)) as package:
                package.extractall(folder)
        found = [name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name))]
    return os.path.join(folder, found[0], "vendor", "llama.cpp")


def version():
    found = [name for name in os.listdir(os.path.join(VENV, "src")) if name.endswith(".tar.gz")]
    name = found[0].removesuffix(".tar.gz") if found else "?"
    return name.replace("llama_cpp_python-", "llama.cpp of llama-cpp-python ")


def build(name, *targets):
    folder = os.path.join(VENV, name)
    if not os.path.exists(os.path.join(folder, "build.ninja")):
        run("cmake", "-S", source(), "-B", folder, "-G", "Ninja", *COMMON, *BUILDS[name], stdout=subprocess.DEVNULL)
    run("nice", "-n", "15", "ninja", "-C", folder, *targets, stdout=subprocess.DEVNULL)


def build_driver():
    include, code = source(), os.path.join(HERE, "peers_llama.c")
    if os.path.exists(DRIVER) and os.path.getmtime(DRIVER) > os.path.getmtime(code):
        return
    # A run path of the new kind yields to LD_LIBRARY_PATH, with which the rows of AVX2 swap the library.
    run("cc", "-std=gnu17", "-O2", "-o", DRIVER, code, f"-I{include}/include", f"-I{include}/ggml/include",
        f"-L{NATIVE}", "-lllama", "-lggml", "-lggml-base", "-lggml-rpc", "-Wl,--enable-new-dtags",
        f"-Wl,-rpath,{NATIVE}")


def system_info(avx2=False):
    env = dict(os.environ, LD_LIBRARY_PATH=AVX2) if avx2 else None
    return subprocess.run([DRIVER, "system"], check=True, capture_output=True, text=True, env=env).stdout.strip()


def check_levels():
    """A build that lost an instruction set would make every ratio a lie."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = next(line for line in file if line.startswith("flags")).split()
    for flag, name in (("avx512_vnni", "AVX512_VNNI = 1"), ("avx512_bf16", "AVX512_BF16 = 1"), ("avx2", "AVX2 = 1")):
        if flag in flags and name not in system_info():
            raise SystemExit(f"peers: this processor has {flag}, but llama.cpp says: {system_info()}")
    if os.path.exists(os.path.join(AVX2, "libggml-cpu.so")) and "AVX512 = 1" in system_info(avx2=True):
        raise SystemExit("peers: the build for AVX2 uses AVX-512")


def smollm2(kind):
    return REAL if kind == "Q4_1" else os.path.join(MODELS, f"smollm2-{kind.lower()}.gguf")


def synthetic(kind):
    return os.path.join(MODELS, f"1b-{kind.lower()}.gguf")


def quantize(origin, out, kind):
    if not os.path.exists(out):
        run(DRIVER, "quantize", origin, out + ".part", str(FTYPES[kind]), stdout=subprocess.DEVNULL)
        os.rename(out + ".part", out)


def ctranslate2_model(name):
    return os.path.join(MODELS, name + "-ctranslate2")


def make_models():
    os.makedirs(MODELS, exist_ok=True)
    if not os.path.exists(REAL):
        raise SystemExit("peers: the model is missing; deploy/fetch-model gets it")
    maker = os.path.join(HERE, "peers_models.py")
    quantize(REAL, smollm2("F32"), "F32")
    for kind in ("Q4_0", "Q8_0", "Q4_K_M", "BF16"):
        quantize(smollm2("F32"), smollm2(kind), kind)
    if not os.path.exists(synthetic("BF16")):
        run(PYTHON, maker, "llama", synthetic("BF16"))
    for kind in ("Q4_0", "Q8_0"):
        quantize(synthetic("BF16"), synthetic(kind), kind)
    for name, origin in (("smollm2", smollm2("F32")), ("1b", synthetic("BF16"))):
        out = ctranslate2_model(name)
        if not os.path.exists(out):
            run(PYTHON, maker, "ctranslate2", origin, out + ".part")
            os.rename(out + ".part", out)


def importable(module):
    return subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def setup():
    """Everything. The server of llama.cpp and its library for AVX2 come last: only few rows need them."""
    if not os.path.exists(PYTHON):
        run(sys.executable, "-m", "venv", VENV)
    for module, package in (("ctranslate2", "ctranslate2"), ("numpy", "numpy"), ("openvino_genai", "openvino-genai")):
        if not importable(module):
            run(PYTHON, "-m", "pip", "-q", "install", package)
    if not os.path.exists(os.path.join(NATIVE, "libllama.so")):
        build("llama-native", "llama")
    build_driver()
    check_levels()
    make_models()
    if not os.path.exists(os.path.join(AVX2, "libggml-cpu.so")):
        build("llama-avx2", "ggml-cpu")
    if not os.path.exists(RPC_SERVER):
        build("llama-native", "ggml-rpc-server")
    if not os.path.exists(SERVER):
        build("llama-native", "llama-server")
    check_levels()
    say(f"{version()}: {system_info()}")
    say(f"disk left: {shutil.disk_usage(VENV).free >> 30} GiB")
