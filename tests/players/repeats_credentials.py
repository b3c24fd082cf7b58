"""Plays as media-stream-library does: its last Authorization goes with the next request, whatever that is, and a 401 is answered with
a new one. Arguments: host, port, user, password. Prints "played" if everything was answered with 200 in the end."""

import hashlib
import re
import socket
import sys

HOST, PORT, USER, PASSWORD = sys.argv[1:5]
URL = f"rtsp://{HOST}:{PORT}/front"


def md5(*parts):
    return hashlib.md5(":".join(parts).encode()).hexdigest()


class Player:
    def __init__(self):
        self.socket = socket.create_connection((HOST, int(PORT)))
        self.file = self.socket.makefile("rb")
        self.authorization = self.session = None
        self.cseq = 0

    def once(self, method, url, headers):
        self.cseq += 1
        lines = [f"{method} {url} RTSP/1.0", f"CSeq: {self.cseq}", *headers]
        if self.authorization:
            lines.append(f"Authorization: {self.authorization}")
        if self.session:
            lines.append(f"Session: {self.session}")
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        while (head := self.file.read(1)) == b"$":
            self.file.read(int.from_bytes(self.file.read(3)[1:], "big"))
        while not head.endswith(b"\r\n\r\n"):
            head += self.file.read(1)
        text = head.decode()
        length = re.search(r"(?i)content-length: (\d+)", text)
        self.file.read(int(length[1]) if length else 0)
        return text

    def ask(self, method, url, *headers):
        text = self.once(method, url, headers)
        if " 401 " in text.splitlines()[0]:
            challenge = re.search(r'realm="([^"]*)"[^\n]*nonce="([^"]*)"[^\n]*MD5', text)
            realm, nonce = challenge.groups()
            response = md5(md5(USER, realm, PASSWORD), nonce, md5(method, url))
            self.authorization = (
                f'Digest username="{USER}", realm="{realm}", nonce="{nonce}", uri="{url}", response="{response}"'
            )
            text = self.once(method, url, headers)
        assert " 200 " in text.splitlines()[0], f"{method}: {text}"
        if session := re.search(r"Session: (\w+)", text):
            self.session = session[1]


player = Player()
player.ask("OPTIONS", URL)
player.ask("DESCRIBE", URL, "Accept: application/sdp")
player.ask("SETUP", f"{URL}/trackID=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
player.ask("PLAY", f"{URL}/")
for _ in range(20):
    player.ask("GET_PARAMETER", f"{URL}/")
    player.ask("OPTIONS", f"{URL}/")
player.ask("TEARDOWN", f"{URL}/")
print("played")
