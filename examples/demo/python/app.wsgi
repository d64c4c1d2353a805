"""Say who answers, and which OpenSSL this very process has loaded."""

import platform
import socket
import ssl
import sys

sys.path.insert(0, "/srv/app/lib")  # what pip installed, in this container's own layer

from flask import Flask, jsonify

application = Flask(__name__)


@application.get("/")
def answer():
    return jsonify(
        name=socket.gethostname(),
        language=f"Python {platform.python_version()}",
        openssl=ssl.OPENSSL_VERSION,
    )
