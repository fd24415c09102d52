"""An application server that gets credentials for its own users: one session, one user, one credential.

    RELAY=http://127.0.0.1:8080 RELAY_KEY=... python app_server.py 8090
"""

import json
import os
import sys
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Application(BaseHTTPRequestHandler):
    def do_GET(self):
        user = "session-7f3a"  # whoever is logged in, by an id that tells strangers nothing
        query = urllib.parse.urlencode({"username": user, "ttl": 3600})
        request = urllib.request.Request(f"{os.environ['RELAY']}/ice?{query}")
        request.add_header("Authorization", f"Bearer {os.environ['RELAY_KEY']}")
        with urllib.request.urlopen(request, timeout=5) as answer:
            configuration = json.load(answer)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(json.dumps(configuration).encode())


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Application)
print(server.server_port, flush=True)
server.serve_forever()
