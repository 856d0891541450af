"""Other people's clients: a stock Python gRPC environment made for the tests, and stubs generated from
our protos. Scenarios that need it call reexecute() first."""
import glob
import os
import subprocess
import sys

from harness import ROOT

VENV = os.path.join(ROOT, "build", "test-venv")
STUBS = os.path.join(ROOT, "build", "test-stubs")
PACKAGES = ["grpcio", "grpcio-tools", "grpcio-reflection", "grpcio-health-checking"]


def prepare():
    """Makes the environment and the stubs once."""
    python = os.path.join(VENV, "bin", "python")
    stamp = os.path.join(VENV, "ready")
    if not os.path.exists(stamp):
        subprocess.run(["/usr/bin/python3", "-m", "venv", "--clear", VENV], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PACKAGES], check=True)
        open(stamp, "w", encoding="utf-8").close()
    os.makedirs(STUBS, exist_ok=True)
    protos = glob.glob(os.path.join(ROOT, "proto/shoal/v1/*.proto"))
    subprocess.run([python, "-m", "grpc_tools.protoc", "-I", os.path.join(ROOT, "proto"), "--python_out", STUBS,
                    "--grpc_python_out", STUBS, *protos], check=True)
    return python


def reexecute():
    """Goes on in the environment; returns there."""
    if os.path.realpath(sys.prefix) == os.path.realpath(VENV):
        sys.path.insert(0, STUBS)
        return
    python = prepare()
    os.execv(python, [python, *sys.argv])
