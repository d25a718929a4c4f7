#!/usr/bin/python3 -I
"""The two ends of the wires between the host and its test VM (see tests/vm/vm).

In the guest   agent.py serve PORT                 run the shell text that arrives on a virtio-serial port
On the host    agent.py ready SOCKET SECONDS       wait until the guest's agent says that it is up
               agent.py run SOCKET SECONDS TEXT    run TEXT in the guest; output and exit status are passed on
               agent.py save QMP FILE              stop the machine, write its state to FILE, end it
               agent.py resume QMP                 wait until a saved state is loaded, and let the machine go on

The wire carries lines. Request: "ID BASE64(text) BASE64(standard input)". Answers: "ID o BASE64" and
"ID e BASE64" with output and errors as they come, then "ID x STATUS". The guest says "ready" when it starts.
Exit status 254 means that the VM failed, not the command.
"""
import base64
import json
import os
import selectors
import shlex
import socket
import subprocess
import sys
import time


def encode(data):
    return base64.b64encode(data).decode()


def decode(text):
    return base64.b64decode(text)


# ---- in the guest ----

def serve(port):
    path = '/dev/virtio-ports/' + port
    while not os.path.exists(path):
        time.sleep(0.05)
    fd = os.open(path, os.O_RDWR)

    def say(*words):
        data = (' '.join(words) + '\n').encode()
        while data:
            data = data[os.write(fd, data):]

    def hear():
        buffer = b''
        while True:
            data = os.read(fd, 65536)
            if not data:                # nobody holds the host's end
                time.sleep(0.02)
                continue
            buffer += data
            while b'\n' in buffer:
                line, buffer = buffer.split(b'\n', 1)
                yield line.decode(errors='replace').split()

    say('ready')
    for words in hear():
        if len(words) < 2:
            continue
        stdin = decode(words[2]) if len(words) > 2 else b''
        try:
            status = run_one(words[0], decode(words[1]).decode(), stdin, say)
        except OSError as error:
            say(words[0], 'e', encode(repr(error).encode()))
            status = 125
        say(words[0], 'x', str(status))


def run_one(ident, text, stdin, say):
    child = subprocess.Popen(['/bin/bash', '-c', text], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, start_new_session=True)
    try:
        child.stdin.write(stdin)
        child.stdin.close()
    except BrokenPipeError:
        pass
    waiting = selectors.DefaultSelector()
    waiting.register(child.stdout, selectors.EVENT_READ, 'o')
    waiting.register(child.stderr, selectors.EVENT_READ, 'e')
    while waiting.get_map():
        events = waiting.select(0.2)
        for key, _ in events:
            data = os.read(key.fd, 32768)
            if data:
                say(ident, key.data, encode(data))
            else:
                waiting.unregister(key.fileobj)
        if not events and child.poll() is not None:     # something in the background keeps the pipes
            break
    status = child.wait()
    child.stdout.close()
    child.stderr.close()
    return status if status >= 0 else 128 - status


# ---- on the host ----

def die(message):
    print('vm: ' + message, file=sys.stderr)
    sys.exit(254)


def dial(path):
    end = time.monotonic() + 30
    while True:
        try:
            wire = socket.socket(socket.AF_UNIX)
            wire.connect(path)
            return wire
        except OSError:
            if time.monotonic() > end:
                die('the machine opens no socket')
            time.sleep(0.02)


def lines(wire, end):
    buffer = b''
    while True:
        wire.settimeout(max(0.1, end - time.monotonic()))
        try:
            data = wire.recv(1 << 16)
        except socket.timeout:
            die('no answer in time')
        except OSError:
            data = b''
        if not data:
            die('the machine ended')
        buffer += data
        while b'\n' in buffer:
            line, buffer = buffer.split(b'\n', 1)
            yield line.decode(errors='replace')


def ready(path, seconds):
    end = time.monotonic() + float(seconds)
    for line in lines(dial(path), end):
        if line.startswith('ready'):
            return 0


def run(path, seconds, text):
    end = time.monotonic() + float(seconds)
    wire = dial(path)
    ident = 'r%d.%d' % (os.getpid(), time.monotonic_ns())
    stdin = sys.stdin.buffer.read() if os.environ.get('VM_STDIN') else b''
    wire.sendall(('%s %s %s\n' % (ident, encode(text.encode()), encode(stdin))).encode())
    for line in lines(wire, end):
        words = line.split(' ')
        if len(words) != 3 or words[0] != ident:
            continue
        if words[1] == 'x':
            return int(words[2])
        stream = (sys.stdout if words[1] == 'o' else sys.stderr).buffer
        stream.write(decode(words[2]))
        stream.flush()


class Monitor:
    """QEMU's machine protocol: one command, one answer; events are of no interest."""

    def __init__(self, path, seconds):
        self.end = time.monotonic() + seconds
        self.wire = dial(path)
        self.lines = lines(self.wire, self.end)
        next(self.lines)                # the greeting
        self.ask('qmp_capabilities')

    def ask(self, command, **arguments):
        if time.monotonic() > self.end:
            die(command + ': not in time')
        self.wire.sendall(json.dumps({'execute': command, 'arguments': arguments}).encode())
        for line in self.lines:
            answer = json.loads(line)
            if 'error' in answer:
                die('%s: %s' % (command, answer['error']['desc']))
            if 'return' in answer:
                return answer['return']


def save(path, file):
    monitor = Monitor(path, 180)
    monitor.ask('stop')
    monitor.ask('migrate-set-parameters', **{'max-bandwidth': 1 << 32})
    monitor.ask('migrate', uri='exec:lz4 -q -c >' + shlex.quote(file))
    while True:
        status = monitor.ask('query-migrate').get('status')
        if status == 'completed':
            break
        if status in ('failed', 'cancelled'):
            die('the state could not be saved')
        time.sleep(0.1)
    monitor.ask('quit')
    return 0


def resume(path):
    monitor = Monitor(path, 60)
    while True:
        status = monitor.ask('query-status')['status']
        if status == 'running':
            return 0
        if status != 'inmigrate':
            monitor.ask('cont')
        time.sleep(0.02)


if __name__ == '__main__':
    actions = {'serve': serve, 'ready': ready, 'run': run, 'save': save, 'resume': resume}
    sys.exit(actions[sys.argv[1]](*sys.argv[2:]))
