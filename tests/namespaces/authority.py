"""Certification authorities that speak ACME, for tests/namespaces/acme; run as `authority.py KIND DIRECTORY ADDRESS PORT [NAME-SERVER]`.

`machine` is `real` at the other end of a network, for tests/manual/blocks: `authority.py machine DIRECTORY ADDRESS PORT NAME SERVER`.
Where it runs is a network of its own, into which a device `far` is moved before it reads a line.

`real` is acme2certifier with an authority of the test's own below it: it proves names as any authority does. `waits` has the
certificate ready when there is a file `waits.go` in DIRECTORY. The others answer as no good authority would: `refuses`, `hangs`,
`limits`, `other_name`, `garbage`. All speak TLS with a certificate of the test.
"""

import base64
import datetime
import json
import os
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

import issuer

RETRY_AFTER = 7200

CONFIG = """
[DEFAULT]
debug: False
dns_server_list: ["{dns}"]
[Nonce]
nonce_check_disable: False
[CAhandler]
handler_module: acme2certifier.cahandlers.openssl_ca_handler
issuing_ca_key: {directory}/issuing.key
issuing_ca_cert: {directory}/issuing.pem
issuing_ca_crl: {directory}/issuing.crl
cert_save_path: {directory}/issued
cert_validity_days: 30
ca_cert_chain_list: []
[DBhandler]
handler: wsgi
dbfile: {directory}/acme.db
[Certificate]
revocation_reason_check_disable: False
[Challenge]
challenge_validation_disable: False
dns_01_support: False
"""


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


class Threading(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


def context(directory):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(os.path.join(directory, "authority.crt"), os.path.join(directory, "authority.key"))
    return tls


def real(directory, address, port, dns, listening=lambda: None):
    path = os.path.join(directory, "acme_srv.cfg")
    with open(path, "w", encoding="utf-8") as file:
        file.write(CONFIG.format(directory=directory, dns=dns))
    os.makedirs(os.path.join(directory, "issued"), exist_ok=True)
    os.environ["ACME_SRV_CONFIGFILE"] = path
    import acme2certifier
    sys.path.insert(0, os.path.join(os.path.dirname(acme2certifier.__file__), "share"))
    import acme2certifier_wsgi

    def application(environ, start_response):
        # It makes its URLs of this.
        environ.update({"wsgi.url_scheme": "https", "HTTP_X_FORWARDED_PROTO": "https"})
        return acme2certifier_wsgi.application(environ, start_response)

    server = make_server(address, port, application, Threading, Quiet)
    server.socket = context(directory).wrap_socket(server.socket, server_side=True)
    listening()
    server.serve_forever()


class Bad(BaseHTTPRequestHandler):
    """Takes every account and every proof, and does then what its kind says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, headers=(), kind="application/json"):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (("Replay-Nonce", "bm9uY2U"), ("Content-Type", kind), ("Content-Length", str(len(raw))), *headers):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def problem(self, status, kind, detail, headers=()):
        body = {"type": f"urn:ietf:params:acme:error:{kind}", "detail": detail, "status": status}
        self.answer(status, body, headers, "application/problem+json")

    def do_HEAD(self):
        self.answer(200, b"")

    def do_GET(self):
        at = self.server.at
        if self.server.kind == "hangs":
            time.sleep(3600)
        if self.server.kind == "garbage":
            return self.answer(200, b"\x00\xff<html>\n\x1b[31mno directory")
        self.answer(200, {name: f"{at}/{name}" for name in ("newNonce", "newAccount", "newOrder", "revokeCert", "keyChange")})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        at, kind, step = self.server.at, self.server.kind, self.path.rsplit("/", 1)[-1]
        with open(self.server.log, "a", encoding="ascii") as file:
            file.write(step + "\n")
        # Each order has a number, which is in its URLs.
        number = int(self.path.split("/")[1]) if self.path.count("/") == 2 else len(self.server.requests)
        order = {"status": "ready", "identifiers": [], "authorizations": [f"{at}/{number}/authz"], "finalize": f"{at}/{number}/finalize"}
        if step == "newAccount":
            if kind == "refuses":
                return self.problem(403, "unauthorized", "no\naccounts \x1b[31mhere")
            return self.answer(201, {"status": "valid"}, [("Location", f"{at}/account")])
        if step == "newOrder":
            if kind == "limits":
                return self.problem(429, "rateLimited", "too many orders", [("Retry-After", str(RETRY_AFTER))])
            self.server.requests.append(None)
            return self.answer(201, order, [("Location", f"{at}/{number}/order")])
        if step == "authz":
            return self.answer(200, {"status": "valid", "identifier": {"type": "dns", "value": self.server.name}, "challenges": []})
        if step == "finalize":
            payload = json.loads(base64.urlsafe_b64decode(body["payload"] + "=="))
            self.server.requests[number] = x509.load_der_x509_csr(base64.urlsafe_b64decode(payload["csr"] + "=="))
        request = self.server.requests[number]
        if step == "certificate":
            return self.answer(200, self.server.certify(request), kind="application/pem-certificate-chain")
        if request and kind == "waits" and not os.path.exists(self.server.log.replace(".log", ".go")):
            order["status"] = "processing"
        elif request:
            order.update({"status": "valid", "certificate": f"{at}/{number}/certificate"})
        return self.answer(200, order)


def certify(request, directory, name):
    """For the name that was asked for, or for another one."""
    with open(os.path.join(directory, "issuing.key"), "rb") as file:
        key = serialization.load_pem_private_key(file.read(), None)
    with open(os.path.join(directory, "issuing.pem"), "rb") as file:
        issuer = x509.load_pem_x509_certificate(file.read())
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(issuer.subject)
               .public_key(request.public_key()).serial_number(x509.random_serial_number())
               .not_valid_before(now).not_valid_after(now + datetime.timedelta(days=30))
               .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def bad(kind, directory, address, port):
    server = ThreadingHTTPServer((address, port), Bad)
    server.daemon_threads = True
    server.kind, server.at, server.name = kind, f"https://{address}:{port}", "turn.example.test"
    server.log = os.path.join(directory, f"{kind}.log")
    server.requests = []
    server.certify = lambda request: certify(request, directory, server.name if kind == "waits" else "other.example.test")
    server.socket = context(directory).wrap_socket(server.socket, server_side=True)
    server.serve_forever()


def machine(directory, address, port, name, server):
    print("a network of my own", flush=True)
    sys.stdin.readline()
    for line in ("link set lo up", f"address add {address}/24 dev far", "link set far up"):
        subprocess.run(["ip", *line.split()], check=True)
    threading.Thread(target=issuer.answer_names, args=(threading.Event(), address, f"{name}.", server), daemon=True).start()
    real(directory, address, port, address, lambda: print("ready", flush=True))


if __name__ == "__main__":
    threading.current_thread().name = "authority"
    if sys.argv[1] == "machine":
        machine(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5], sys.argv[6])
    elif sys.argv[1] == "real":
        real(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
    else:
        bad(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
