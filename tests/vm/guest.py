#!/usr/bin/python3 -I
"""Black-box tests that run inside the VM (tests/vm/run starts them there).

    guest.py GROUP [WORD...]    the tests of GROUP whose names contain one of the words; all without a word

GROUP says who runs the tests, and where:
    session    a user with subordinate ids, in a login session
    delegated  the same, in a scope of systemd whose cgroup is the user's own
    plain      a user with neither
    slurm      as session, where Slurm runs
    podman     as session, where Podman 5 is; its runtime is skiff, or $RUNTIME to compare with
    rootful    the same as root
    nofuse     as session, but /dev/fuse cannot be opened
    selinux    as session, where SELinux enforces policy.cil
    selinux1   as plain, likewise

skiff is the one in PATH. Each test is a function that raises when something is wrong. The last line
printed is "N passed, N failed, N skipped".
"""
import glob
import hashlib
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback

WORK = tempfile.mkdtemp(prefix='skiff-test-', dir=os.environ['HOME'])
FOREVER = ['sh', '-c', 'trap "exit 3" TERM; echo up; while :; do sleep 0.2; done']


# ---- helpers ----

def command(*words, status=0, timeout=90, text=''):
    """Runs a command with the text as its input; its output and errors. Fails unless it ends with the status (None: any)."""
    child = subprocess.Popen(words, stdin=subprocess.PIPE if text else subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, errors='replace', start_new_session=True)
    try:
        done = subprocess.CompletedProcess(child.args, None, *child.communicate(text or None, timeout=timeout))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        raise AssertionError('no end after %d s: %s' % (timeout, ' '.join(words))) from None
    done.returncode = child.returncode
    if status is not None and done.returncode != status:
        raise AssertionError('status %d instead of %d: %s\n%s%s' % (
            done.returncode, status, ' '.join(words), done.stdout, done.stderr))
    return done


def skiff(*words, **options):
    return command('skiff', *words, **options)


def out(*words, **options):
    return skiff(*words, **options).stdout.strip()


def run(*words, **options):
    return skiff('run', '--rm', '--network', 'none', *words, **options)


def inspect(name, template):
    return out('inspect', '--format', template, name)


def equal(got, wanted):
    assert got == wanted, 'got %r instead of %r' % (got, wanted)


def contains(text, *parts):
    for part in parts:
        assert part in text, '%r is not in:\n%s' % (part, text)


def eventually(condition, what, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'not within %d s: %s' % (seconds, what)
        time.sleep(0.1)


def layer(files):
    """A layer: name -> text, ('link', target) or None for a directory."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode='w') as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755 if name.startswith('bin') or content is None else 0o644
            if content is None:
                entry.type = tarfile.DIRTYPE
            elif isinstance(content, tuple):
                entry.type, entry.linkname = tarfile.SYMTYPE, content[1]
            data = content if isinstance(content, bytes) else b''
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return made.getvalue()


def busybox_layer():
    files = {'bin': None, 'bin/busybox': open('/bin/busybox', 'rb').read(), 'etc': None, 'tmp': None, 'root': None,
             'etc/passwd': b'root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000::/tmp:/bin/sh\n',
             'etc/group': b'root:x:0:\nguest:x:1000:\n', 'old': b'old\n', 'kept': b'kept\n',
             'dir': None, 'dir/a': b'a\n', 'dir/b': b'b\n'}
    for name in subprocess.check_output(['/bin/busybox', '--list'], text=True).split():
        files.setdefault('bin/' + name, ('link', 'busybox'))
    return layer(files)


def docker_archive(path, name, layers, config):
    """What docker save writes."""
    image = {'architecture': 'amd64', 'os': 'linux', 'config': config,
             'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + hashlib.sha256(one).hexdigest() for one in layers]}}
    manifest = [{'Config': 'config.json', 'RepoTags': [name],
                 'Layers': ['%d/layer.tar' % i for i in range(len(layers))]}]
    parts = {'config.json': json.dumps(image).encode(), 'manifest.json': json.dumps(manifest).encode()}
    parts.update({'%d/layer.tar' % i: one for i, one in enumerate(layers)})
    with tarfile.open(path, 'w') as archive:
        for part, data in parts.items():
            entry = tarfile.TarInfo(part)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def tiny_archive():
    """The image that most tests use: busybox below, a second layer that takes two files away."""
    archive = os.path.join(WORK, 'tiny.tar')
    if not os.path.exists(archive):
        upper = layer({'.wh.old': b'', 'dir/.wh.a': b'', 'new': b'new\n'})
        docker_archive(archive, 'tiny:1', [busybox_layer(), upper],
                       {'Cmd': ['/bin/sh', '-c', 'echo $GREETING'], 'Env': ['PATH=/bin', 'GREETING=hello from tiny']})
    return archive


def load_tiny():
    contains(out('load', '-i', tiny_archive()), 'tiny:1')


def oci_bundle(process, linux={}, rootless=True):
    """A bundle that says what it is confined by, with these settings changed; its directory, and how skiff is called for it."""
    bundle = tempfile.mkdtemp(dir=WORK)
    os.mkdir(bundle + '/rootfs')
    with tarfile.open(fileobj=io.BytesIO(busybox_layer())) as archive:
        archive.extractall(bundle + '/rootfs')
    out('oci', 'spec', *['--rootless'] * rootless, '-b', bundle)
    with open(bundle + '/config.json') as file:
        spec = json.load(file)
    spec['process'].update({'terminal': False, 'args': ['cat', '/proc/self/attr/current'], **process})
    spec['linux'].update(linux)
    with open(bundle + '/config.json', 'w') as file:
        json.dump(spec, file)
    os.mkdir(bundle + '/state', 0o700)
    return bundle, ['oci', '--root', bundle + '/state']


def process_file(bundle, **changed):
    """What exec is told in a file: by what its process is confined, and nothing else of the container's."""
    with open(bundle + '/process.json', 'w') as file:
        json.dump({'args': ['cat', '/proc/self/attr/current'], 'cwd': '/', 'env': ['PATH=/bin'], 'user': {'uid': 0, 'gid': 0}, **changed}, file)
    return bundle + '/process.json'


def skiff_quietly(*words):
    """Runs skiff where what it starts keeps its output."""
    child = subprocess.Popen(['skiff', *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    equal((child.wait(60), child.stderr.read() if child.returncode else ''), (0, ''))


def overlay_for_users():
    """Whether this kernel lets a user mount an overlay, by trying."""
    places = {name: tempfile.mkdtemp(dir=WORK) for name in ('lower', 'upper', 'work', 'target')}
    options = 'lowerdir={lower},upperdir={upper},workdir={work},userxattr'.format(**places)
    return subprocess.run(['unshare', '-Urm', 'mount', '-t', 'overlay', '-o', options, 'none', places['target']],
                          stderr=subprocess.DEVNULL).returncode == 0


def own_cgroup_directory():
    return '/sys/fs/cgroup' + open('/proc/self/cgroup').read().strip().split('::')[1]


# ---- what every user can do ----

def version():
    assert re.search(r'\d+\.\d+\.\d+', out('version'))


def doctor():
    """It finds what is here, and for what is not, says what would help."""
    text = out('doctor')
    found = {name.strip(): verdict for verdict, name in re.findall(r'^(ok|no) +(.{20})', text, re.M)}
    subuid = any(line.startswith(os.environ['USER'] + ':') for line in open('/etc/subuid'))
    here = {'kernel overlay': overlay_for_users(), '/dev/fuse': os.access('/dev/fuse', os.W_OK),
            'subuid range': subuid, 'cgroup v2': True, 'cgroup delegation': os.access(own_cgroup_directory(), os.W_OK)}
    for name, ok in here.items():
        equal('%s %s' % (found.get(name), name), ('ok ' if ok else 'no ') + name)
        if not ok:
            assert re.search(r'^no +' + name + r' .*\n +an administrator can: \S', text, re.M), text


def info():
    assert json.loads(out('info', '--format', '{{json .}}'))
    contains(out('info'), os.uname().release)


def hello():
    assert run('hello').stdout.strip()


def load():
    contains(out('images'), 'tiny')
    equal(run('tiny:1').stdout, 'hello from tiny\n')


def import_():
    archive = os.path.join(WORK, 'root.tar')
    with open(archive, 'wb') as file:
        file.write(busybox_layer())
    out('import', archive, 'imported:1')
    equal(run('imported:1', '/bin/cat', '/old').stdout, 'old\n')
    out('rmi', 'imported:1')


def network_none():
    equal(run('tiny:1', 'ls', '/sys/class/net').stdout.split(), ['lo'])


def lifecycle():
    ident = out('run', '-d', '--name', 'life', '--network', 'none', 'tiny:1', *FOREVER)
    assert re.fullmatch('[0-9a-f]{64}', ident), ident
    listed = out('ps')
    contains(listed, 'life', ident[:12], 'Up')
    eventually(lambda: 'up' in out('logs', 'life'), 'a line in the log')
    out('stop', 'life')
    equal(inspect('life', '{{.State.Status}} {{.State.ExitCode}}'), 'exited 3')
    assert 'life' not in out('ps')
    contains(out('ps', '-a'), 'Exited (3)')
    out('rm', 'life')
    assert 'life' not in out('ps', '-a')


def stop_kills():
    """A process that ignores SIGTERM is killed after the time given."""
    out('run', '-d', '--name', 'deaf', '--network', 'none', 'tiny:1', 'sleep', '1000')
    out('stop', '-t', '1', 'deaf')
    equal(inspect('deaf', '{{.State.ExitCode}}'), '137')
    out('rm', 'deaf')


def restart_keeps_files():
    out('run', '-d', '--name', 'again', '--network', 'none', 'tiny:1', 'sh', '-c', 'echo run >>/count; cat /count')
    equal(out('wait', 'again'), '0')
    out('start', 'again')
    equal(out('wait', 'again'), '0')
    equal(out('logs', 'again').split(), ['run'] * 3)
    out('rm', 'again')


def exec_():
    out('run', '-d', '--name', 'host', '--network', 'none', 'tiny:1', *FOREVER)
    equal(out('exec', 'host', 'cat', '/new'), 'new')
    skiff('exec', 'host', 'sh', '-c', 'exit 9', status=9)
    equal(out('exec', '-e', 'A=b', '-w', '/dir', 'host', 'sh', '-c', 'echo $A $PWD'), 'b /dir')
    skiff('exec', 'host', 'nothing-of-the-kind', status=127)
    out('exec', 'host', 'touch', '/made')
    equal(out('exec', 'host', 'ls', '/made'), '/made')
    out('rm', '-f', 'host')


def exit_codes():
    run('tiny:1', 'sh', '-c', 'exit 42', status=42)
    run('--no-such-option', 'tiny:1', status=125)
    run('-v', 'not-absolute/x:y:z:w', 'tiny:1', status=125)
    run('tiny:1', '/etc/passwd', status=126)
    run('tiny:1', 'nothing-of-the-kind', status=127)
    run('tiny:1', 'sh', '-c', 'sh -c "kill -INT \\$\\$"; exit $?', status=130)
    run('tiny:1', 'sh', '-c', 'sh -c "kill -TERM \\$\\$"; exit $?', status=143)
    out('run', '-d', '--name', 'victim', '--network', 'none', 'tiny:1', 'sleep', '1000')
    out('kill', 'victim')
    equal(out('wait', 'victim'), '137')
    out('rm', 'victim')


def interrupt():
    """Ctrl-C at a running container reaches its process, and its status comes back."""
    child = subprocess.Popen(['skiff', 'run', '--rm', '--name', 'busy', '--network', 'none', 'tiny:1', 'sh', '-c',
                              'trap "exit 130" INT; echo up; while :; do sleep 0.2; done'],
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        equal(child.stdout.readline(), b'up\n')
        child.send_signal(signal.SIGINT)
        equal(child.wait(30), 130)
        eventually(lambda: 'busy' not in out('ps', '-a'), '--rm removes the container')
    finally:
        child.kill()
        child.wait()


def bind_mount():
    shared = tempfile.mkdtemp(dir=WORK)
    run('-v', shared + ':/shared', 'tiny:1', 'sh', '-c', 'echo written >/shared/file')
    equal(open(shared + '/file').read(), 'written\n')
    equal(os.stat(shared + '/file').st_uid, os.getuid())
    run('-v', shared + ':/shared:ro', 'tiny:1', 'sh', '-c', 'echo no >/shared/file', status=1)


# ---- ids ----

def many_ids():
    """All ids of an image exist where the user has subordinate ids."""
    ids = sum(int(line.split()[2]) for line in run('tiny:1', 'cat', '/proc/self/uid_map').stdout.splitlines())
    assert ids > 65000, ids
    script = 'touch /f; chown 1000:1000 /f; stat -c %u:%g /f'
    equal(run('tiny:1', 'sh', '-c', script).stdout, '1000:1000\n')
    equal(run('-u', 'guest', 'tiny:1', 'id', '-u').stdout, '1000\n')


def one_id():
    """Without subordinate ids root in the container is the user, and nobody else exists."""
    fields = run('tiny:1', 'cat', '/proc/self/uid_map').stdout.split()
    equal(fields[1:], [str(os.getuid()), '1'])
    equal(run('tiny:1', 'id', '-u').stdout, '0\n')


# ---- the ladder of root file systems ----

FILES = '''
set -e
[ ! -e /old ] && [ ! -e /dir/a ]            # whiteouts of the second layer
[ "$(cat /kept /new /dir/b)" = "$(printf 'kept\\nnew\\nb')" ]
echo more >>/kept && [ "$(wc -l </kept)" = 2 ]
rm /new && [ ! -e /new ]
echo again >/new && [ "$(cat /new)" = again ]
mkdir /made && mv /made /moved && [ -d /moved ]
ln /dir/b /hard && echo c >>/hard && [ "$(cat /dir/b)" = "$(cat /hard)" ]
echo x >/one && ln /one /two && [ /one -ef /two ]
ln -s kept /soft && [ "$(readlink /soft)" = kept ]
rm -r /dir && mkdir /dir && [ -z "$(ls /dir)" ]
chmod 600 /kept && [ "$(stat -c %a /kept)" = 600 ]
ls /bin | grep -qx busybox
echo fine
'''


def root_works(*words):
    """A root file system does what it must, twice: the image stays as it was."""
    for _ in range(2):
        equal(skiff(*words, 'run', '--rm', '--network', 'none', 'tiny:1', 'sh', '-c', FILES).stdout, 'fine\n')


def driver_of(*words):
    out(*words, 'create', '--name', 'which', '--network', 'none', 'tiny:1', 'true')
    try:
        return inspect('which', '{{.Driver}}')
    finally:
        out('rm', 'which')


def forced(driver):
    """A rung that this machine has works; one that it lacks is refused with the reason."""
    words = ['--storage-driver', driver]
    overlay, fuse = overlay_for_users(), os.access('/dev/fuse', os.W_OK)
    have = {'overlay-fuse': overlay and fuse, 'fuse': fuse, 'overlay': overlay, 'copy': True}[driver]
    if have:
        equal(driver_of(*words), driver)
        root_works(*words)
    else:
        failed = skiff(*words, 'run', '--rm', '--network', 'none', 'tiny:1', 'true', status=125)
        contains(failed.stderr.lower(), '/dev/fuse' if overlay or driver == 'fuse' else 'overlay')


def rung_overlay_fuse():
    forced('overlay-fuse')


def rung_fuse():
    forced('fuse')


def last_write():
    """What a container's last process wrote through a mapping just before it ended is there afterwards."""
    for _ in range(8):
        out('--storage-driver', 'fuse', 'run', '--name', 'last', '--network', 'none', '-v', '/mnt/host:/tests:ro', 'tiny:1', '/tests/union', 'last', '/f')
        out('cp', 'last:/f', WORK + '/last')
        with open(WORK + '/last', 'rb') as file:
            equal(file.read().count(b'x'), 2048)
        out('rm', 'last')


def commit_while_it_writes():
    """What a running container has written to files that it has open is in the image that is made of it."""
    for words in ['--storage-driver', 'fuse'], []:
        out(*words, 'run', '-d', '--name', 'writes', '--network', 'none', 'tiny:1', 'sh', '-c',
            '(printf more; sleep 1000) | dd of=/new bs=4 seek=1 conv=notrunc & (printf hello; sleep 1000) | dd of=/made bs=5')
        eventually(lambda: skiff('exec', 'writes', 'stat', '-c', '%s', '/made', '/new', status=None).stdout == '5\n8\n', 'all is written')
        out('commit', 'writes', 'writes:1')
        out('rm', '-f', 'writes')
        equal(run('writes:1', 'cat', '/made', '/new').stdout, 'hellonew\nmore')
        out('rmi', 'writes:1')


def rung_overlay():
    forced('overlay')


def rung_copy():
    forced('copy')


def rung_chosen():
    """Left alone, skiff takes the best rung and names it."""
    overlay, fuse = overlay_for_users(), os.access('/dev/fuse', os.W_OK)
    best = 'overlay-fuse' if overlay and fuse else 'fuse' if fuse else 'overlay' if overlay else 'copy'
    root_works()
    equal(driver_of(), best)
    equal(out('info', '--format', '{{.Driver}}'), best)


def build_context(dockerfile):
    """A directory to build from, with one file beside the Dockerfile."""
    context = tempfile.mkdtemp(dir=WORK)
    for name, text in ('Dockerfile', dockerfile), ('file', 'from the context\n'):
        with open(context + '/' + name, 'w') as file:
            file.write(text)
    return context


def build_and_commit():
    """What is written on the rung that is chosen becomes a layer, and is there again."""
    context = build_context('FROM tiny:1\nRUN echo one >/one && rm /kept && mkdir /made && ln /one /made/link\nCOPY file /made/file\n'
                            'RUN cat /made/file >>/made/link && mv /made /moved && rm -r /dir && mkdir /dir\n')
    out('build', '-q', '-t', 'built:1', context, timeout=180)
    script = 'ls /kept /made 2>/dev/null; cat /moved/link; ls -A /dir'
    equal(run('built:1', 'sh', '-c', script).stdout, 'one\nfrom the context\n')
    skiff('run', '--name', 'changed', '--network', 'none', 'built:1', 'sh', '-c', 'echo more >>/moved/file; rm /one')
    equal(out('diff', 'changed').splitlines(), ['C /moved', 'C /moved/file', 'D /one'])
    out('commit', 'changed', 'built:2')
    out('rm', 'changed')
    equal(run('built:2', 'sh', '-c', 'cat /moved/file; [ ! -e /one ] && echo gone').stdout, 'from the context\nmore\ngone\n')
    out('rmi', 'built:2', 'built:1')


# ---- security modules ----

def apparmor():
    """A profile that root has loaded confines what a user runs: first processes, what exec adds, and those of bundles."""
    mine, current = ['--security-opt', 'apparmor=skiff-test'], ['cat', '/proc/self/attr/current']
    for more in [], ['--init'], ['--security-opt', 'no-new-privileges'], ['--user', 'guest'], ['--cap-drop', 'ALL']:
        equal(run(*mine, *more, 'tiny:1', *current).stdout, 'skiff-test (enforce)\n')
    contains(run(*mine, 'tiny:1', 'cat', '/kept', status=1).stderr, 'ermission denied')
    equal(run('tiny:1', 'cat', '/kept').stdout, 'kept\n')
    equal(run('--security-opt', 'apparmor=unconfined', 'tiny:1', *current).stdout, 'unconfined\n')
    contains(run('--security-opt', 'apparmor=no-such', 'tiny:1', 'true', status=125).stderr, "'no-such' is not loaded")
    out('run', '-d', '--name', 'confined', '--network', 'none', *mine, 'tiny:1', *FOREVER)
    equal(inspect('confined', '{{.AppArmorProfile}}'), 'skiff-test')
    equal(out('exec', 'confined', *current), 'skiff-test (enforce)')
    contains(skiff('exec', 'confined', 'cat', '/kept', status=1).stderr, 'ermission denied')
    equal(out('exec', '--privileged', 'confined', *current), 'unconfined')
    out('rm', '-f', 'confined')
    contains(out('info', '--format', '{{.SecurityOptions}}'), 'name=apparmor')
    bundle, words = oci_bundle({'apparmorProfile': 'skiff-test'})
    contains(out(*words, 'run', '-b', bundle, 'box'), 'skiff-test (enforce)')
    bundle, words = oci_bundle({'args': ['sleep', '1000']})
    skiff_quietly(*words, 'run', '-d', '-b', bundle, 'box')
    equal(out(*words, 'exec', 'box', *current), 'unconfined')
    equal(out(*words, 'exec', '--apparmor', 'skiff-test', 'box', *current), 'skiff-test (enforce)')
    out(*words, 'delete', '-f', 'box')
    bundle, words = oci_bundle({'args': ['sleep', '1000'], 'apparmorProfile': 'skiff-test'})
    skiff_quietly(*words, 'run', '-d', '-b', bundle, 'box')
    equal(out(*words, 'exec', '--process', process_file(bundle), 'box'), 'skiff-test (enforce)')
    equal(out(*words, 'exec', '--process', process_file(bundle, apparmorProfile='unconfined'), 'box'), 'unconfined')
    out(*words, 'delete', '-f', 'box')
    bundle, words = oci_bundle({'selinuxLabel': 'a:b:c:s0'})
    contains(skiff(*words, 'run', '-b', bundle, 'box', status=None).stderr, '/process/selinuxLabel is ignored', 'SELinux is not enabled')


CURRENT = ['cat', '/proc/self/attr/current']
CONFINED = ['--security-opt', 'label=type:container_t']
PROCESS, FILES_OF = 'system_u:system_r:container_t:', 'system_u:object_r:container_file_t:'


def label_of(path):
    return os.getxattr(path, 'security.selinux').decode().rstrip('\0')


def set_label(path, label):
    os.setxattr(path, 'security.selinux', label.encode() + b'\0', follow_symlinks=False)


def labelled(type_, level='s0'):
    """A file of the user's own with that label."""
    path = tempfile.mkdtemp(dir=WORK) + '/file'
    with open(path, 'w') as file:
        file.write('told\n')
    set_label(path, 'system_u:object_r:%s:%s' % (type_, level))
    return path


def said(text):
    """A process' label, which the kernel ends with a zero."""
    return text.rstrip('\0\n')


def selinux_labels():
    """The process has the label that is asked for, or one with categories of its own; without one it has the caller's."""
    equal(said(run('tiny:1', *CURRENT).stdout), said(open('/proc/self/attr/current').read()))
    equal(said(run('--security-opt', 'label=disable', 'tiny:1', *CURRENT).stdout), said(open('/proc/self/attr/current').read()))
    assert re.fullmatch(PROCESS + r's0:c\d+,c\d+', said(run(*CONFINED, 'tiny:1', *CURRENT).stdout))
    mine = ['--security-opt', 'label=level:s0:c1,c2']
    for more in [], ['--init'], ['--security-opt', 'no-new-privileges'], ['--cap-drop', 'ALL', '--user', '65534'], ['--privileged']:
        if '--user' not in more or os.environ['USER'] == 'tester':
            equal(said(run(*mine, *more, 'tiny:1', *CURRENT).stdout), PROCESS + 's0:c1,c2')
    contains(out('info', '--format', '{{.SecurityOptions}}'), 'name=selinux')
    equal(json.loads(out('oci', 'features'))['linux']['selinux'], {'enabled': True})


def selinux_enforced():
    """What the policy denies the label is denied, by type and by category, and not to who has no label."""
    secret, theirs = labelled('secret_t'), labelled('container_file_t', 's0:c3,c4')
    read = lambda path, *words, **options: run('-v', path + ':/file', *words, 'tiny:1', 'cat', '/file', **options)
    contains(read(secret, *CONFINED, status=1).stderr, 'ermission denied')
    contains(read(secret, *CONFINED, '--privileged', status=1).stderr, 'ermission denied')
    contains(read(theirs, '--security-opt', 'label=level:s0:c1,c2', status=1).stderr, 'ermission denied')
    equal(read(secret, '--security-opt', 'label=disable').stdout, 'told\n')
    equal(read(theirs, '--security-opt', 'label=level:s0:c3,c4').stdout, 'told\n')


def selinux_mounts():
    """What the container writes to has the label of its files, and every rung does with what the policy gives it."""
    mine = ['--security-opt', 'label=level:s0:c1,c2']
    table = run(*mine, '--tmpfs', '/tmp', 'tiny:1', 'cat', '/proc/self/mounts').stdout
    labels = {line.split()[1]: line for line in table.splitlines() if 'context=' in line}
    for place in '/dev', '/dev/pts', '/dev/shm', '/tmp', '/etc/hosts', '/sys/firmware':
        contains(labels[place], 'context="%ss0:c1,c2"' % FILES_OF)
    contains(run('--security-opt', 'label=filetype:secret_t', 'tiny:1', 'true', status=126).stderr, 'ermission denied')
    for driver in ['copy'] + ['overlay', 'overlay-fuse'] * overlay_for_users() + ['fuse']:
        contains(skiff('--storage-driver', driver, 'run', '--rm', '--network', 'none', *CONFINED, 'tiny:1', 'sh', '-c', FILES).stdout, 'fine\n')


def selinux_volumes():
    """z and Z give files the label of the container's, volumes have it unasked; what is not the user's to label is an error."""
    mine = ['--security-opt', 'label=level:s0:c1,c2']
    secret, shared, own = labelled('secret_t'), labelled('secret_t'), labelled('secret_t', 's0:c3')
    os.symlink(secret, os.path.dirname(shared) + '/link')
    equal(run(*mine, '-v', os.path.dirname(shared) + ':/d:z', '-v', own + ':/o:ro,Z', 'tiny:1', 'cat', '/d/file', '/o').stdout, 'told\ntold\n')
    equal([label_of(path) for path in (os.path.dirname(shared), shared, own, secret)],
          [FILES_OF + 's0', FILES_OF + 's0', FILES_OF + 's0:c1,c2', 'system_u:object_r:secret_t:s0'])
    run('-v', secret + ':/file:Z', 'tiny:1', 'true')
    run('-v', secret + ':/file:Z', '--security-opt', 'label=disable', 'tiny:1', 'true')
    equal(label_of(secret), 'system_u:object_r:secret_t:s0')
    for path, why in ('/etc', 'of /etc is not allowed'), ('/usr/bin', 'label'), (os.environ['HOME'], 'is not allowed'):
        contains(run(*mine, '-v', path + ':/x:z', 'tiny:1', 'true', status=125).stderr, why)
    for name, words in ('some', mine), ('others', CONFINED):
        text = run(*words, '-v', 'named:/dir', '--mount', 'type=volume,target=/anonymous', 'tiny:1', 'sh', '-c',
                   'echo x >/anonymous/x; echo %s >/dir/%s; cat /dir/b /dir/some' % (name, name)).stdout
        equal(text, 'b\nsome\n')
    out('volume', 'rm', 'named')


def selinux_exec():
    """What exec adds has the label of the container, and what a restart starts."""
    out('run', '-d', '--name', 'confined', '--network', 'none', *CONFINED, '-v', labelled('secret_t') + ':/file', 'tiny:1', *FOREVER)
    process, mount = inspect('confined', '{{.ProcessLabel}} {{.MountLabel}}').split()
    assert process.startswith(PROCESS) and mount == FILES_OF + process[len(PROCESS):], (process, mount)
    for _ in range(2):
        equal(said(open('/proc/%s/attr/current' % inspect('confined', '{{.State.Pid}}')).read()), process)
        equal(said(out('exec', 'confined', *CURRENT)), process)
        contains(skiff('exec', 'confined', 'cat', '/file', status=1).stderr, 'ermission denied')
        out('restart', '-t', '1', 'confined')
    out('rm', '-f', 'confined')


def selinux_unknown():
    """A label that the policy does not know is named."""
    for word, label in (('type:nosuch_t', 'nosuch_t'), ('role:nosuch_r', 'nosuch_r'), ('user:nosuch_u', 'nosuch_u'),
                        ('filetype:nosuch_t', 'mount label system_u:object_r:nosuch_t'), ('level:s9', 's9')):
        contains(run('--security-opt', 'label=' + word, 'tiny:1', 'true', status=125).stderr, 'SELinux policy does not know', label)
    bundle, words = oci_bundle({'selinuxLabel': 'a:b:c:s0'})
    contains(skiff(*words, 'run', '-b', bundle, 'box', status=1).stderr, 'SELinux policy does not know', 'a:b:c:s0')
    bundle, words = oci_bundle({}, {'mountLabel': 'a:b:c:s0'})
    contains(skiff(*words, 'run', '-b', bundle, 'box', status=1).stderr, 'SELinux policy does not know', 'mount label a:b:c:s0')


def selinux_bundle():
    """process.selinuxLabel and linux.mountLabel, and what the runtime's own exec is told."""
    label, mount = PROCESS + 's0:c1,c2', FILES_OF + 's0:c1,c2'
    bundle, words = oci_bundle({'selinuxLabel': label, 'args': ['sleep', '1000']}, {'mountLabel': mount})
    for place, _, files in os.walk(bundle + '/rootfs'):
        for path in [place] + [os.path.join(place, file) for file in files]:
            set_label(path, mount)
    skiff_quietly(*words, 'run', '-d', '-b', bundle, 'box')
    equal(said(open('/proc/%d/attr/current' % json.loads(out(*words, 'state', 'box'))['pid']).read()), label)
    equal(said(out(*words, 'exec', 'box', *CURRENT)), label)
    equal(said(out(*words, 'exec', '--process-label', PROCESS + 's0:c1,c2,c5', 'box', *CURRENT)), PROCESS + 's0:c1,c2,c5')
    equal(said(out(*words, 'exec', '--process', process_file(bundle), 'box')), label)
    equal(said(out(*words, 'exec', '--process', process_file(bundle, selinuxLabel=PROCESS + 's0:c1,c2,c6'), 'box')), PROCESS + 's0:c1,c2,c6')
    contains(out(*words, 'exec', 'box', 'grep', ' /dev tmpfs', '/proc/mounts'), 'context="%s"' % mount)
    out(*words, 'delete', '-f', 'box')


# ---- limits: a cgroup v2 that is the user's own ----

def own_cgroup():
    """A container sees its own cgroup as the root, and may not change it."""
    equal(run('tiny:1', 'cat', '/proc/self/cgroup').stdout, '0::/\n')
    run('tiny:1', 'mkdir', '/sys/fs/cgroup/mine', status=1)


def memory_limit():
    equal(run('--memory', '64m', 'tiny:1', 'cat', '/sys/fs/cgroup/memory.max').stdout, '67108864\n')


def memory_bomb():
    """What outgrows --memory is killed, and inspect says why."""
    skiff('run', '--name', 'bomb', '--network', 'none', '--memory', '64m', 'tiny:1', 'tail', '/dev/zero', status=137)
    equal(inspect('bomb', '{{.State.OOMKilled}} {{.State.ExitCode}}'), 'true 137')
    out('rm', 'bomb')
    skiff('run', '--name', 'kill', '-d', '--network', 'none', '--memory', '64m', 'tiny:1', 'sleep', '1000')
    out('kill', 'kill')
    out('wait', 'kill')
    equal(inspect('kill', '{{.State.OOMKilled}} {{.State.ExitCode}}'), 'false 137')
    out('rm', 'kill')


def pids_limit():
    script = 'cat /sys/fs/cgroup/pids.max; i=0; while [ $i -lt 50 ]; do sleep 20 & i=$((i+1)); done; echo all'
    done = run('--pids-limit', '20', 'tiny:1', 'sh', '-c', script, status=2)
    equal(done.stdout, '20\n')
    contains(done.stderr, 'fork')


def fork_bomb():
    """It is held for as long as it tries, and the container can still be looked at and removed."""
    out('run', '-d', '--name', 'forks', '--network', 'none', '--pids-limit', '30', 'tiny:1',
        'awk', 'BEGIN { while (1) system("sleep 1000 &") }')
    time.sleep(3)
    count = len(os.popen('pgrep -x sleep').read().split())
    assert 20 <= count <= 30, count
    contains(out('ps'), 'forks')
    out('rm', '-f', 'forks')
    eventually(lambda: not os.popen('pgrep -x sleep').read(), 'all its processes are gone')


def half_a_cpu():
    script = 'timeout 4 sh -c "while :; do :; done"; cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu.stat'
    text = run('--cpus', '0.5', 'tiny:1', 'sh', '-c', script).stdout
    contains(text, '50000 100000')
    used = int(re.search(r'usage_usec (\d+)', text).group(1)) / 1e6
    assert 0.8 < used < 3, 'used %.2f s of 4' % used


def pause():
    out('run', '-d', '--name', 'counter', '--network', 'none', 'tiny:1', 'sh', '-c',
        'while :; do echo x; sleep 0.1; done')
    eventually(lambda: out('logs', 'counter'), 'a line in the log')
    out('pause', 'counter')
    equal(inspect('counter', '{{.State.Status}} {{.State.Paused}}'), 'paused true')
    before = out('logs', 'counter')
    time.sleep(1)
    equal(out('logs', 'counter'), before)
    out('unpause', 'counter')
    eventually(lambda: out('logs', 'counter') != before, 'output after unpause')
    out('rm', '-f', 'counter')


def freezes_itself():
    """A container that stops its own cgroup holds up nobody: its health check fails, and it can be ended."""
    out('run', '-d', '--name', 'frozen', '--network', 'none', '--memory', '64m', '--cgroupns', 'host', '-v', '/sys/fs/cgroup:/cg', '--health-cmd', 'true',
        '--health-interval', '1s', 'tiny:1', 'sh', '-c', 'sleep 3; echo 1 >/cg$(cut -d: -f3 /proc/self/cgroup)/cgroup.freeze; sleep 1000')
    eventually(lambda: inspect('frozen', '{{.State.Health.Status}}') == 'healthy', 'a health check succeeds')
    eventually(lambda: 'frozen?' in inspect('frozen', '{{json .State.Health.Log}}'), 'one fails', 60)
    out('rm', '-f', 'frozen')


def stats():
    out('run', '-d', '--name', 'measured', '--network', 'none', '--memory', '64m', 'tiny:1', *FOREVER)
    contains(out('stats', '--no-stream', 'measured'), 'measured', '64MiB')
    out('rm', '-f', 'measured')


def exec_is_limited():
    """What exec adds to a container is within its limits, and does not end the container when it is killed."""
    for last in False, False, True:
        out('run', '-d', '--name', 'shared', '--network', 'none', '--memory', '64m', 'tiny:1', *FOREVER)
        equal(out('exec', 'shared', 'cat', '/proc/self/cgroup'), '0::/')
        skiff('exec', 'shared', 'tail', '/dev/zero', status=137)
        state = inspect('shared', '{{.State.Status}} {{.State.OOMKilled}}')
        out('rm', '-f', 'shared')
        if last or state != 'exited true':  # the kernel takes another victim where the first one is slow to die
            break
    equal(state.split()[0], 'running')


def cgroup_file(name, file):
    """A file of a running container's cgroup, as the host sees it."""
    own = open('/proc/%s/cgroup' % inspect(name, '{{.State.Pid}}')).read().strip().split('::')[1]
    return open('/sys/fs/cgroup%s/%s' % (own, file)).read().strip()


def update():
    """The limits of a running container change at once, what is not named stays, and a restart keeps them."""
    out('run', '-d', '--name', 'grow', '--network', 'none', '--memory', '64m', '--memory-swap', '96m', '--cpus', '0.5', '--pids-limit', '50',
        '--restart', 'no', 'tiny:1', *FOREVER)
    equal([cgroup_file('grow', file) for file in ('memory.max', 'memory.swap.max', 'cpu.max', 'pids.max')],
          [str(64 << 20), str(32 << 20), '50000 100000', '50'])
    out('update', '--memory', '48m', 'grow')
    equal([cgroup_file('grow', file) for file in ('memory.max', 'memory.swap.max', 'cpu.max', 'pids.max')],
          [str(48 << 20), str(48 << 20), '50000 100000', '50'])
    out('update', '--memory-swap', '64m', 'grow')
    equal([cgroup_file('grow', file) for file in ('memory.max', 'memory.swap.max')], [str(48 << 20), str(16 << 20)])
    out('update', '--cpu-period', '50000', '--cpu-quota', '10000', '--cpu-shares', '2', '--pids-limit', '60', 'grow')
    equal([cgroup_file('grow', file) for file in ('cpu.max', 'cpu.weight', 'pids.max')], ['10000 50000', '1', '60'])
    out('update', '--cpu-quota', '20000', 'grow')
    equal(cgroup_file('grow', 'cpu.max'), '20000 50000')
    contains(skiff('update', '--memory', '80m', 'grow', status=1).stderr, 'emory')     # above memory and swap
    equal(cgroup_file('grow', 'memory.max'), str(48 << 20))
    out('update', '--memory-reservation', '16m', 'grow')
    equal(cgroup_file('grow', 'memory.low'), str(16 << 20))
    out('restart', '-t', '1', 'grow')
    equal([cgroup_file('grow', file) for file in ('memory.max', 'cpu.max', 'pids.max')], [str(48 << 20), '20000 50000', '60'])
    out('update', '--pids-limit', '-1', '--cpus', '0', '--memory', '-1', '--memory-swap', '-1', 'grow')
    equal([cgroup_file('grow', file).split()[0] for file in ('memory.max', 'memory.swap.max', 'cpu.max', 'pids.max')], ['max'] * 4)
    out('rm', '-f', 'grow')
    out('run', '-d', '--name', 'free', '--network', 'none', 'tiny:1', *FOREVER)
    contains(skiff('update', '--memory', '64m', 'free', status=1).stderr, 'cgroup')
    out('update', '--restart', 'on-failure:2', 'free')
    out('rm', '-f', 'free')


def cgroup_conf():
    """Any file of the cgroup; io and cpu.idle where they are given to the user."""
    done = run('--cgroup-conf', 'memory.high=50000000', '--cgroup-conf', 'pids.max=33', 'tiny:1', 'cat', '/sys/fs/cgroup/memory.high', '/sys/fs/cgroup/pids.max')
    equal(done.stdout.split(), [str(50000000 // 4096 * 4096), '33'])
    equal(run('--cgroup-conf', 'cpu.weight=7', 'tiny:1', 'cat', '/sys/fs/cgroup/cpu.weight').stdout, '7\n')
    idle = run('--cgroup-conf', 'cpu.idle=1', 'tiny:1', 'cat', '/sys/fs/cgroup/cpu.idle', status=None)   # Linux 5.15
    if idle.returncode:
        contains(idle.stderr, 'cpu.idle')
    else:
        equal(idle.stdout, '1\n')
    weight = run('--blkio-weight', '100', 'tiny:1', 'sh', '-c', 'cat /sys/fs/cgroup/io.bfq.weight /sys/fs/cgroup/io.weight 2>/dev/null', status=None)
    if weight.returncode == 125:
        contains(weight.stderr, 'io.')      # the io controller is not the user's, or the kernel has neither scheduler
    else:
        assert re.search('100|default', weight.stdout), weight.stdout
    for bad, said in ('nosuch.file=1', 'nosuch'), ('../x=1', '../x'), ('memory.max=lots', 'memory.max'):
        contains(run('--cgroup-conf', bad, 'tiny:1', 'true', status=125).stderr, said)


def oci_limits():
    """linux.resources of a bundle, and the runtime's own update."""
    bundle, words = oci_bundle({'args': ['sleep', '1000']}, {'resources': {
        'memory': {'limit': 64 << 20, 'swap': 128 << 20}, 'pids': {'limit': 40}, 'cpu': {'shares': 1024, 'quota': 50000, 'period': 100000},
        'unified': {'memory.high': '60000000'}}})
    skiff_quietly(*words, 'run', '-d', '-b', bundle, 'box')
    own = '/sys/fs/cgroup' + open('/proc/%d/cgroup' % json.loads(out(*words, 'state', 'box'))['pid']).read().strip().split('::')[1]
    read = lambda *files: [open(own + '/' + file).read().strip() for file in files]
    equal(read('memory.max', 'memory.swap.max', 'pids.max', 'cpu.max', 'cpu.weight', 'memory.high'),
          [str(64 << 20), str(64 << 20), '40', '50000 100000', '100', str(60000000 // 4096 * 4096)])
    out(*words, 'update', '--memory', '48m', '--pids-limit', '30', 'box')
    equal(read('memory.max', 'pids.max'), [str(48 << 20), '30'])
    with open(bundle + '/limits.json', 'w') as file:
        json.dump({'pids': {'limit': 20}, 'cpu': {'quota': 25000, 'period': 50000}}, file)
    out(*words, 'update', '--resources', bundle + '/limits.json', 'box')
    equal(read('pids.max', 'cpu.max'), ['20', '25000 50000'])
    out(*words, 'pause', 'box')
    equal(json.loads(out(*words, 'state', 'box'))['status'], 'paused')
    out(*words, 'resume', 'box')
    out(*words, 'delete', '-f', 'box')
    eventually(lambda: not os.path.exists(own), 'its cgroup is gone')


def scope():
    """In a session the limits are in a scope that the user's systemd makes for the asking; nothing of it stays."""
    units = lambda: subprocess.check_output(['systemctl', '--user', '--no-legend', '--plain', '--all', 'list-units', 'skiff-*.scope'], text=True).split()
    before = open('/proc/self/cgroup').read()
    out('run', '-d', '--name', 'scoped', '--network', 'none', '--memory', '64m', 'tiny:1', *FOREVER)
    where = open('/proc/%s/cgroup' % inspect('scoped', '{{.State.Pid}}')).read()
    assert re.search(r'/user@%d\.service/.*skiff-[0-9a-f-]+\.scope/' % os.getuid(), where), where
    contains(' '.join(units()), '.scope', 'skiff-')
    equal(open('/proc/self/cgroup').read(), before)
    equal(out('exec', 'scoped', 'cat', '/sys/fs/cgroup/memory.max'), str(64 << 20))
    out('stop', '-t', '2', 'scoped')
    out('rm', 'scoped')
    eventually(lambda: not units(), 'the scope is gone: %s' % units())
    child = subprocess.Popen(['env', '-u', 'DBUS_SESSION_BUS_ADDRESS', 'skiff', 'run', '--rm', '--network', 'none', '--pids-limit', '20', 'tiny:1', 'cat',
                              '/sys/fs/cgroup/pids.max'], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    equal(child.communicate(timeout=60)[0], '20\n')


def oci_scope():
    """systemd as cgroup manager: a scope of the name that is asked for, which it and the container have the limits of."""
    limits = {'memory': {'limit': 64 << 20, 'swap': 96 << 20}, 'pids': {'limit': 40}, 'cpu': {'shares': 2048, 'quota': 50000, 'period': 100000}}
    bundle, words = oci_bundle({'args': ['sleep', '1000']}, {'resources': limits, 'cgroupsPath': 'user.slice:test:box'})
    show = lambda name: subprocess.check_output(['systemctl', '--user', 'show', 'test-box.scope', '-P', name], text=True).strip()
    skiff_quietly(*words, '--systemd-cgroup', 'run', '-d', '-b', bundle, 'box')
    state = json.loads(out(*words, 'state', 'box'))
    equal(state['systemd-scope'], 'test-box.scope')
    own = '/sys/fs/cgroup' + open('/proc/%d/cgroup' % state['pid']).read().strip().split('::')[1]
    assert re.search('/user@%d.service/user.slice/test-box.scope/container$' % os.getuid(), own), own
    read = lambda *files: [open(own + '/' + file).read().strip() for file in files]
    equal(read('memory.max', 'memory.swap.max', 'pids.max', 'cpu.max', 'cpu.weight'), [str(64 << 20), str(32 << 20), '40', '50000 100000', '174'])
    names = 'ActiveState', 'MemoryMax', 'MemorySwapMax', 'TasksMax', 'CPUWeight', 'CPUQuotaPerSecUSec'
    equal([show(name) for name in names], ['active', str(64 << 20), str(32 << 20), '40', '174', '500ms'])
    child = subprocess.Popen(['skiff', *words, 'exec', 'box', 'sleep', '1001'], stdin=subprocess.DEVNULL)
    eventually(lambda: len(read('cgroup.procs')[0].split()) == 2, 'what exec runs is in the cgroup')
    out(*words, 'update', '--memory', '48m', '--memory-swap', '48m', '--cpu-shares', '1024', 'box')
    equal(read('memory.max', 'memory.swap.max', 'cpu.weight'), [str(48 << 20), '0', '100'])
    equal([show('MemoryMax'), show('CPUWeight')], [str(48 << 20), '100'])
    out(*words, 'pause', 'box')
    equal(json.loads(out(*words, 'state', 'box'))['status'], 'paused')
    out(*words, 'resume', 'box')
    out(*words, 'delete', '-f', 'box')
    child.wait(30)
    eventually(lambda: not os.path.exists(own) and show('ActiveState') == 'inactive', 'the scope is gone')
    sliceless, its = oci_bundle({'args': ['sleep', '1000']}, {'cgroupsPath': ':test:sliceless'})
    skiff_quietly(*its, '--systemd-cgroup', 'run', '-d', '-b', sliceless, 'box')
    equal(subprocess.check_output(['systemctl', '--user', 'show', 'test-sliceless.scope', '-P', 'Slice'], text=True), 'user.slice\n')
    out(*its, 'delete', '-f', 'box')
    contains(skiff(*words, '--cgroup-manager', 'nonsense', 'list', status=1).stderr, 'nonsense', 'systemd')
    child = subprocess.run(['env', 'XDG_RUNTIME_DIR=' + WORK, 'skiff', *words, '--systemd-cgroup', 'run', '-b', bundle, 'box'],
                           stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60)
    equal(child.returncode, 1)
    contains(child.stderr, 'systemd', WORK)
    equal(out(*words, 'list', '-q'), '')


def oci_scope_devices():
    """By the host's root: the program that rules the devices is pinned for systemd; it goes with the container, and with one that fails."""
    rules = {'cgroupsPath': 'system.slice:test:devices', 'resources': {'devices': [{'allow': False, 'access': 'rwm'}]}}
    pinned = lambda: glob.glob('/sys/fs/bpf/*/test-devices*')
    bundle, words = oci_bundle({'args': ['sleep', '1000']}, rules, rootless=False)
    skiff_quietly(*words, '--systemd-cgroup', 'run', '-d', '-b', bundle, 'box')
    equal(len(pinned()), 1)
    contains(subprocess.check_output(['systemctl', 'show', 'test-devices.scope', '-P', 'BPFProgram'], text=True), pinned()[0])
    out(*words, 'delete', '-f', 'box')
    equal(pinned(), [])
    bundle, words = oci_bundle({'args': ['/nosuch']}, rules, rootless=False)
    contains(skiff(*words, '--systemd-cgroup', 'run', '-b', bundle, 'box', status=None).stderr, '/nosuch')
    equal(pinned(), [])


def oci_scope_of_root():
    """In root's scope there is also what systemd does not manage; without a slice it is among the system's."""
    if 'hugetlb' not in open('/sys/fs/cgroup/cgroup.controllers').read():
        return
    limits = {'memory': {'limit': 64 << 20}, 'hugepageLimits': [{'pageSize': '2MB', 'limit': 8 << 20}]}
    bundle, words = oci_bundle({'args': ['sleep', '1000']}, {'resources': limits, 'cgroupsPath': ':test:box'})
    skiff_quietly(*words, '--systemd-cgroup', 'run', '-d', '-b', bundle, 'box')
    own = '/sys/fs/cgroup/system.slice/test-box.scope/container'
    contains(open(own + '/cgroup.procs').read(), str(json.loads(out(*words, 'state', 'box'))['pid']))
    equal([open(own + '/' + file).read() for file in ('memory.max', 'hugetlb.2MB.max')], ['%d\n' % (64 << 20), '%d\n' % (8 << 20)])
    out(*words, 'delete', '-f', 'box')
    eventually(lambda: not os.path.exists(own), 'its cgroup is gone')


def oci_binds_of_root():
    """By the host's root, with a user namespace: what is mounted below a directory of the host is mounted in the container alone."""
    mounts = open('/proc/self/mountinfo').read()
    bundle, words = oci_bundle({'args': ['grep', '-c', ' /sys/firmware ', '/proc/self/mountinfo']})
    equal(skiff(*words, 'run', '-b', bundle, 'box').stdout.strip(), '1')
    equal(open('/proc/self/mountinfo').read(), mounts)


def oci_events():
    """What a container uses, as runc tells it, and when it runs out of memory."""
    limits = {'memory': {'limit': 48 << 20, 'swap': 48 << 20}, 'pids': {'limit': 40}}
    bundle, words = oci_bundle({'args': ['sleep', '1000']}, {'resources': limits})
    skiff_quietly(*words, 'run', '-d', '-b', bundle, 'box')
    told = json.loads(out(*words, 'events', '--stats', 'box'))
    data = told['data']
    equal((told['type'], told['id'], data['pids'], data['memory']['usage']['limit']), ('stats', 'box', {'current': 1, 'limit': 40}, 48 << 20))
    assert data['cpu']['usage']['total'] > 0 and data['memory']['usage']['usage'] > 0 and data['memory']['raw'], data
    child = subprocess.Popen(['skiff', *words, 'events', '--interval', '500ms', 'box'], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    skiff(*words, 'exec', 'box', 'tail', '/dev/zero', status=137)
    types = set()
    while types != {'stats', 'oom'}:
        types.add(json.loads(child.stdout.readline())['type'])
    out(*words, 'delete', '-f', 'box')
    equal(child.wait(30), 0)


def no_systemd_to_ask():
    """Without the manager's socket a limit is refused as ever."""
    child = subprocess.run(['env', 'XDG_RUNTIME_DIR=' + WORK, 'skiff', 'run', '--rm', '--network', 'none', '--memory', '64m', 'tiny:1', 'true'],
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    equal(child.returncode, 125)
    contains(child.stderr, 'cgroup', 'systemd-run --user')


def limit_without_cgroup():
    """Where no cgroup is to be had, a limit is refused, and the remedy is named."""
    contains(run('--memory', '64m', 'tiny:1', 'true', status=125).stderr, 'cgroup', 'systemd-run --user')


# ---- in a batch job (tests/vm/slurm), whose cgroup has the job's limits ----

def srun(*words, status=0):
    """Runs a job step; its standard output, without which it may not end with the status."""
    child = subprocess.run(['srun', '--quiet', '-n1', *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)
    assert status in (None, child.returncode), 'status %d instead of %s: srun %s\n%s%s' % (child.returncode, status, words, child.stdout, child.stderr)
    return child.stdout, child.stderr


JOB = re.compile(r'0::(/.*/job_\d+/step_\d+)/user')


def job_is_not_left():
    """A container is in the cgroup of its job, and so is what exec adds; limits that it cannot have there do not take it elsewhere."""
    script = os.path.join(WORK, 'job')
    with open(script, 'w') as file:
        file.write('cat /proc/self/cgroup\nskiff run -d --name injob --network none tiny:1 sleep 1000 >&2\n'
                   'cat /proc/$(skiff inspect -f "{{.State.Pid}}" injob)/cgroup\n'
                   'skiff run --rm --network none --cgroupns host tiny:1 cat /proc/self/cgroup\n'
                   'skiff run --rm --network none --memory 64m --limits best-effort --cgroupns host tiny:1 cat /proc/self/cgroup\n'
                   'skiff rm -f injob >&2\n')
    lines = srun('--mem=200', 'sh', script)[0].split()
    equal(len(lines), 4)
    equal({JOB.match(line).group(1) for line in lines}, {JOB.match(lines[0]).group(1)})
    said = srun('skiff', 'run', '--rm', '--network', 'none', '--memory', '64m', 'tiny:1', 'true', status=125)[1]
    contains(said, 'batch job', 'best-effort')


def job_limits():
    """The job's memory and processors are the container's."""
    text, said = srun('--mem=100', 'sh', '-c', 'skiff run --rm --network none tiny:1 tail /dev/zero; echo $?', status=None)
    equal(text, '137\n')
    contains(said, 'oom-kill')
    equal(srun('-c1', 'skiff', 'run', '--rm', '--network', 'none', 'tiny:1', 'nproc')[0], '1\n')


def job_end():
    """Nothing outlives the job."""
    srun('skiff', 'run', '-d', '--name', 'left', '--network', 'none', 'tiny:1', 'sleep', '1000')
    eventually(lambda: out('ps', '-q') == '', 'no container runs')
    out('rm', 'left')


def job_container():
    """srun --container, with oci.conf."""
    bundle = oci_bundle({}, {'namespaces': [{'type': name} for name in ('pid', 'ipc', 'uts', 'mount', 'user')]})[0]
    box = '--container=' + bundle
    equal(srun(box, '/bin/sh', '-c', 'echo $SLURM_STEP_ID; id -u')[0].split(), ['0', '0'])
    assert JOB.match(srun(box, '/bin/cat', '/proc/self/cgroup')[0])
    contains(srun('--mem=100', box, '/bin/tail', '/dev/zero', status=None)[1], 'oom-kill')
    equal(srun('-c1', box, '/bin/nproc')[0], '1\n')
    srun(box, '/bin/sh', '-c', 'exit 7', status=7)
    eventually(lambda: os.listdir('/var/tmp/states-' + os.environ['USER']) == [], 'no state is left')


# ---- as the runtime of Podman 5, whose cgroups systemd makes ----

RUNTIME = os.environ.get('RUNTIME') or os.path.join(WORK, 'skiff-runtime')
ROOT = os.getuid() == 0
USER = [] if ROOT else ['--user']      # which systemd
MIB = 1 << 20


def podman(*words, timeout=240, **options):
    return command('podman', '--runtime', RUNTIME, *words, timeout=timeout, **options)


def pod(*words, **options):
    return podman(*words, **options).stdout.strip()


def pod_run(*words, **options):
    return podman('run', '--rm', '--network', 'none', *words, **options)


def pod_start(name, *words, argv=FOREVER):
    """A container in the background; its whole id."""
    ident = pod('run', '-d', '--name', name, '--network', 'none', *words, 'tiny:1', *argv)
    assert re.fullmatch('[0-9a-f]{64}', ident), ident
    return ident


def pod_inspect(name, template):
    return pod('inspect', '--format', template, name)


def pod_cgroup(name, *files):
    """Files of a running container's cgroup, as the host sees them."""
    own = open('/proc/%s/cgroup' % pod_inspect(name, '{{.State.Pid}}')).read().strip().split('::')[1]
    return [open('/sys/fs/cgroup%s/%s' % (own, file)).read().strip() for file in files] if files else own


def unit(name, *properties):
    """What systemd knows of a unit."""
    text = command('systemctl', *USER, 'show', name, *('-p' + one for one in properties)).stdout
    known = dict(line.split('=', 1) for line in text.splitlines())
    return [known[one] for one in properties]


def at_terminal(*words, text=''):
    """Runs podman at a terminal of 31 lines and 97 columns, types the text; what is seen, and the exit status."""
    child, terminal = pty.fork()
    if child == 0:
        subprocess.run(['stty', 'rows', '31', 'cols', '97', '-echo'])
        os.execvp('podman', ['podman', '--runtime', RUNTIME, *words])
    os.write(terminal, text.encode())
    seen = b''
    try:
        while data := os.read(terminal, 4096):
            seen += data
    except OSError:         # EIO: nobody holds the other end any more
        pass
    os.close(terminal)
    return seen.decode(errors='replace').replace('\r\n', '\n'), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def podman_ready():
    if 'RUNTIME' not in os.environ:
        os.symlink(shutil.which('skiff'), RUNTIME)
    contains(pod('load', '-i', tiny_archive()), 'tiny:1')


def podman_run():
    """What a container is given, and its exit status."""
    shared = tempfile.mkdtemp(dir=WORK)
    pod('volume', 'create', 'kept')
    script = '''hostname; pwd; echo $A; id -u; id -G; ulimit -n; cat /proc/1/comm; grep -E 'Seccomp:|NoNewPrivs' /proc/self/status | cut -f2
        cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_forward; stat -f -c %T /t; stat -c %a /t; df -k /dev/shm | awk 'NR>1{print $2}'
        touch /f 2>/dev/null || echo no; touch /tmp/f && echo yes; touch /ro/f 2>/dev/null || echo no; touch /shared/f /v/f && echo yes
        echo over >/over/f; cat /over/f; ls /sys/class/net; cat /proc/self/cgroup; exit 5'''
    options = ['-e', 'A=b', '-w', '/dir', '-h', 'there', '--group-add', '7', '--ulimit', 'nofile=100:200', '--init', '--read-only',
               '--security-opt', 'no-new-privileges', '--oom-score-adj', '700', '--sysctl', 'net.ipv4.ip_forward=1', '--shm-size', '1m',
               '--tmpfs', '/t:size=1m,mode=700', '-v', shared + ':/shared', '-v', shared + ':/ro:ro', '-v', shared + ':/over:O', '-v', 'kept:/v']
    equal(pod_run(*options, 'tiny:1', 'sh', '-c', script, status=5).stdout.split(),
          'there /dir b 0 0 7 100 podman-init 1 2 700 1 tmpfs 700 1024 no yes no yes over lo 0::/'.split())
    equal((os.listdir(shared), os.stat(shared + '/f').st_uid, os.stat(shared + '/f').st_size), (['f'], os.getuid(), 0))
    pod_run('tiny:1', 'nothing-of-the-kind', status=127)
    pod_run('tiny:1', '/etc/passwd', status=126)
    pod('volume', 'rm', 'kept')


def podman_users():
    """Another user of few rights and a seccomp profile of one's own; other ids."""
    with open(WORK + '/seccomp.json', 'w') as file:
        json.dump({'defaultAction': 'SCMP_ACT_ALLOW', 'syscalls': [{'names': ['mkdir', 'mkdirat'], 'action': 'SCMP_ACT_ERRNO', 'errnoRet': 95}]}, file)
    done = pod_run('--user', 'guest', '--cap-drop', 'all', '--security-opt', 'seccomp=%s/seccomp.json' % WORK, '-i', 'tiny:1', 'sh', '-c',
                   'id -u; id -g; grep CapBnd /proc/self/status | cut -f2; wc -c; mkdir /tmp/d', text='x' * 100000, status=1)
    equal(done.stdout.split(), ['1000', '1000', '0' * 16, '100000'])
    contains(done.stderr, 'not supported')
    if ROOT:
        equal(pod_run('--uidmap', '0:100000:65536', '--oom-score-adj', '-100', 'tiny:1', 'cat', '/proc/self/uid_map', '/proc/self/oom_score_adj').stdout.split(),
              ['0', '100000', '65536', '-100'])
    else:
        equal(pod_run('--userns', 'keep-id:uid=5,gid=6', 'tiny:1', 'sh', '-c', 'id -u; id -g').stdout, '5\n6\n')


def podman_privileged():
    """All rights, the host's network, and what a systemd in the container needs: a cgroup of its own to write to, tmpfs where it wants them."""
    script = 'mkdir /sys/fs/cgroup/made && ls -d /sys/fs/cgroup/made; stat -f -c %T /run /tmp; echo $container; grep Seccomp: /proc/self/status | cut -f2'
    script += '; mount -t tmpfs none /mnt || mkdir /mnt; mount -t tmpfs none /mnt && echo mounted; ls /sys/class/net'
    done = podman('run', '--rm', '--privileged', '--systemd', 'always', '--network', 'host', 'tiny:1', 'sh', '-c', script)
    equal(done.stdout.split(), ['/sys/fs/cgroup/made', 'tmpfs', 'tmpfs', 'podman', '0', 'mounted'] + sorted(os.listdir('/sys/class/net')))


ASKED = ['--memory', '64m', '--memory-swap', '96m', '--cpus', '0.5', '--pids-limit', '50']
FILES_OF_LIMITS = ['/sys/fs/cgroup/' + file for file in ('memory.max', 'memory.swap.max', 'cpu.max', 'pids.max')]
KNOWN = ['ActiveState', 'MemoryMax', 'MemorySwapMax', 'CPUQuotaPerSecUSec', 'TasksMax']


def podman_limits():
    """The limits are in a scope that systemd knows them of, and so is what update changes."""
    ident = pod_start('held', *ASKED)
    scope = 'libpod-%s.scope' % ident
    contains(pod_cgroup('held'), '/' + scope)
    wanted = [str(64 * MIB), str(32 * MIB), '50000 100000', '50']
    equal(pod('exec', 'held', 'cat', '/proc/self/cgroup', *FILES_OF_LIMITS).splitlines(), ['0::/'] + wanted)
    equal(unit(scope, *KNOWN), ['active', str(64 * MIB), str(32 * MIB), '500ms', '50'])
    command('systemctl', *USER, 'daemon-reload')        # it writes what it knows again
    equal(pod_cgroup('held', *(os.path.basename(file) for file in FILES_OF_LIMITS)), wanted)
    pod('update', '--memory', '48m', '--memory-swap', '48m', '--cpus', '0.25', '--pids-limit', '40', 'held')
    equal(pod('exec', 'held', 'cat', *FILES_OF_LIMITS).splitlines(), [str(48 * MIB), '0', '25000 100000', '40'])
    equal(unit(scope, *KNOWN), ['active', str(48 * MIB), '0', '250ms', '40'])
    contains(pod('stats', '--no-stream', '--format', '{{.Name}} {{.MemUsage}} {{.PIDs}}', 'held'), 'held', '50.33MB')
    pod('stop', '-t', '1', 'held')
    eventually(lambda: unit(scope, 'ActiveState') == ['inactive'], 'the scope is gone')
    pod('start', 'held')
    equal(unit(scope, *KNOWN), ['active', str(48 * MIB), '0', '250ms', '40'])
    pod('rm', '-f', '-t', '0', 'held')


def podman_out_of_memory():
    """In a slice of one's own, too."""
    ident = pod('create', '--name', 'bomb', '--network', 'none', '--memory', '64m', '--memory-swap', '64m', '--cgroup-parent', 'test-deep.slice',
                'tiny:1', 'sh', '-c', 'trap "exec tail /dev/zero" USR1; while :; do sleep 0.2; done')
    pod('start', 'bomb')
    contains(pod_cgroup('bomb'), '/test.slice/test-deep.slice/libpod-%s.scope' % ident)
    pod('kill', '-s', 'USR1', 'bomb')
    equal(pod('wait', 'bomb'), '137')
    equal(pod_inspect('bomb', '{{.State.OOMKilled}} {{.State.ExitCode}}'), 'true 137')
    pod('rm', 'bomb')
    contains(podman('run', '--rm', '--network', 'none', '--cgroup-parent', '/no/slice', 'tiny:1', 'true', status=125).stderr, 'slice')


def podman_exec():
    pod_start('one', '-t')
    podman('exec', 'one', 'sh', '-c', 'exit 9', status=9)
    podman('exec', 'one', 'nothing-of-the-kind', status=127)
    equal(pod('exec', '-i', '-u', 'guest', '-w', '/dir', '-e', 'A=b', 'one', 'sh', '-c', 'id -u; pwd; echo $A; cat', text='through'), '1000\n/dir\nb\nthrough')
    script = 'grep -h CapEff /proc/1/status /proc/self/status | cut -f2; grep Seccomp: /proc/self/status | cut -f2'
    init, own, filtered = pod('exec', 'one', 'sh', '-c', script).split()
    equal((own, filtered), (init, '2'))
    init, own, filtered = pod('exec', '--privileged', 'one', 'sh', '-c', script).split()
    assert own > init, own
    seen, status = at_terminal('exec', '-it', 'one', 'sh', '-c', 'tty; sleep 1; stty size; read a; echo "got $a"; exit 6', text='word\n')
    equal(status, 6)
    contains(seen, '/dev/pts/1\n', '31 97\n', 'got word\n')
    pod('rm', '-f', '-t', '0', 'one')
    seen, status = at_terminal('run', '--rm', '-it', '--network', 'none', 'tiny:1', 'sh', '-c', 'tty; sleep 1; stty size; read a; echo "got $a"; exit 4', text='word\n')
    equal(status, 4)
    contains(seen, '/dev/pts/0\n', '31 97\n', 'got word\n')


def podman_lifecycle():
    ident = pod_start('life', '--health-cmd', 'test -e /kept', '--health-interval', 'disable', '--health-retries', '1')
    contains(pod('ps', '--no-trunc'), ident, 'Up')
    contains(pod('top', 'life', 'pid', 'args'), 'trap')
    equal(pod('logs', 'life'), 'up')
    equal(pod_inspect('life', '{{.State.Status}} {{.State.Running}} {{.OCIRuntime}}'), 'running true ' + RUNTIME)
    with open(WORK + '/in', 'w') as file:
        file.write('copied\n')
    pod('cp', WORK + '/in', 'life:/dir/in')
    pod('cp', 'life:/dir/in', WORK + '/out')
    equal(open(WORK + '/out').read(), 'copied\n')
    contains(pod('diff', 'life'), 'A /dir/in')
    pod('healthcheck', 'run', 'life')
    pod('exec', 'life', 'rm', '/kept')
    podman('healthcheck', 'run', 'life', status=1)
    equal(pod_inspect('life', '{{.State.Health.Status}}'), 'unhealthy')
    pod('pause', 'life')
    equal(pod_cgroup('life', 'cgroup.events')[0].splitlines()[-1], 'frozen 1')
    equal(pod_inspect('life', '{{.State.Status}}'), 'paused')
    pod('unpause', 'life')
    pod('stop', 'life')
    equal(pod_inspect('life', '{{.State.Status}} {{.State.ExitCode}}'), 'exited 3')
    pod('restart', '-t', '0', 'life')
    equal(pod('exec', 'life', 'cat', '/dir/in'), 'copied')
    pod('kill', '-s', 'TERM', 'life')
    equal(pod('wait', 'life'), '3')
    pod('start', 'life')
    pod('kill', 'life')
    equal(pod('wait', 'life'), '137')
    pod('rm', 'life')


def podman_build():
    context = build_context('FROM tiny:1\nENV A=b\nRUN chmod 777 /tmp && echo $A >/one && rm /kept && id -u >>/one && cat /sys/fs/cgroup/memory.max >>/one\nCOPY file /made/file\nUSER guest\n'
                            'RUN --mount=type=tmpfs,target=/scratch cat /made/file >/tmp/two && id -u >>/tmp/two\n')
    words = ['build', '-q', '--no-cache', '--network', 'none', '--isolation', 'oci', '--memory', '64m', '-t', 'built:1', context]
    podman(*words, '--runtime', '/bin/false', status=1)
    pod(*words, '--runtime', RUNTIME)
    equal(pod_run('built:1', 'sh', '-c', 'cat /one /tmp/two; [ ! -e /kept ] && id -u').stdout, 'b\n0\n%d\nfrom the context\n1000\n1000\n' % (64 * MIB))
    pod('rmi', 'built:1')


def podman_cgroupfs():
    """Where Podman has cgroups made without systemd: as root where it says, otherwise beside the caller's own."""
    delegated = ['systemd-run', *USER, '--scope', '--quiet', '-p', 'Delegate=yes', 'podman', '--runtime', RUNTIME, '--cgroup-manager', 'cgroupfs']
    call = lambda *words: command(*delegated, *words).stdout.strip()
    ident = call('run', '-d', '--name', 'plain', '--network', 'none', *ASKED, 'tiny:1', *FOREVER)
    assert pod_cgroup('plain').endswith('/libpod-' + ident if ROOT else '/' + ident), pod_cgroup('plain')
    equal(call('exec', 'plain', 'cat', *FILES_OF_LIMITS).splitlines(), [str(64 * MIB), str(32 * MIB), '50000 100000', '50'])
    call('update', '--memory', '48m', 'plain')
    equal(call('exec', 'plain', 'cat', FILES_OF_LIMITS[0]), str(48 * MIB))
    call('pause', 'plain')
    call('unpause', 'plain')
    contains(call('stats', '--no-stream', '--format', '{{.MemUsage}}', 'plain'), '50.33MB')
    call('rm', '-f', '-t', '0', 'plain')


def podman_pod():
    """Two containers that share a pod's namespaces, below its slice."""
    pod('pod', 'create', '--name', 'both', '--network', 'none', '--memory', '96m', '--share', 'net,ipc,uts')
    for name in 'left', 'right':
        pod('run', '-d', '--pod', 'both', '--name', name, 'tiny:1', *FOREVER)
    spaces = [[os.readlink('/proc/%s/ns/%s' % (pod_inspect(name, '{{.State.Pid}}'), kind)) for kind in ('net', 'ipc', 'uts', 'mnt')] for name in ('left', 'right')]
    equal(spaces[0][:3], spaces[1][:3])
    assert spaces[0][3] != spaces[1][3]
    above = [os.path.dirname(pod_cgroup(name).removesuffix('/container')) for name in ('left', 'right')]
    equal(above[0], above[1])
    assert above[0].endswith('.slice'), above
    equal(open('/sys/fs/cgroup%s/memory.max' % above[0]).read(), '%d\n' % (96 * MIB))
    pod('pod', 'stop', '-t', '1', 'both')
    pod('pod', 'start', 'both')
    pod('exec', 'right', 'true')
    pod('pod', 'rm', '-f', '-t', '0', 'both')


def podman_service():
    """A service of type notify whose cgroup is split between conmon and the container."""
    name = 'notify-test.service'
    command('systemd-run', *USER, '--quiet', '--unit', name, '-p', 'Type=notify', '-p', 'NotifyAccess=all', '-p', 'Delegate=yes',
            'podman', '--runtime', RUNTIME, 'run', '--rm', '--name', 'told', '--network', 'none', '--cgroups', 'split', '--sdnotify', 'conmon', '-d',
            '--memory', '64m', 'tiny:1', *FOREVER)
    equal(unit(name, 'ActiveState'), ['active'])
    contains(pod_cgroup('told'), '/%s/libpod-payload-' % name)
    equal(pod_cgroup('told', 'memory.max'), [str(64 * MIB)])
    command('systemctl', *USER, 'stop', name)
    eventually(lambda: pod('ps', '-aq') == '', 'the container is gone')


def podman_nothing_left():
    equal(pod('ps', '-aq'), '')
    names = lambda: re.findall(r'libpod\S*', command('systemctl', *USER, '--no-legend', '--plain', '--all', 'list-units').stdout)
    eventually(lambda: not names(), 'no scope or slice is left: %s' % names())
    eventually(lambda: not os.popen('pgrep -u %d "conmon|skiff"' % os.getuid()).read(), 'no conmon and no skiff runs any more')
    pod('rmi', '-fa')


# ---- at the end ----

def nothing_left():
    equal(out('ps', '-aq'), '')
    eventually(lambda: not os.popen('pgrep -u %d -x skiff' % os.getuid()).read(), 'no skiff runs any more')
    for path, directories, _ in os.walk(own_cgroup_directory().removesuffix('/skiff.self')):
        equal([name for name in directories if name != 'skiff.self'], [])
    mounts = [line for line in open('/proc/self/mounts') if 'skiff' in line and '/mnt/host' not in line]
    equal(mounts, [])
    out('rmi', '-f', 'tiny:1')
    out('image', 'prune', '-af')
    equal(out('images', '-q'), '')


# ---- who runs what ----

BASICS = [version, doctor, info, hello, load, import_, network_none, lifecycle, stop_kills, restart_keeps_files,
          exec_, exit_codes, interrupt, bind_mount]
RUNGS = [rung_chosen, rung_overlay_fuse, rung_fuse, rung_overlay, rung_copy, build_and_commit]
CGROUPS = [own_cgroup, pause, freezes_itself]
LIMITS = [memory_limit, memory_bomb, pids_limit, fork_bomb, half_a_cpu, exec_is_limited, stats, update, cgroup_conf]
PODMAN = [podman_run, podman_users, podman_privileged, podman_limits, podman_out_of_memory, podman_exec, podman_lifecycle, podman_build,
          podman_cgroupfs, podman_pod, podman_service, podman_nothing_left]
GROUPS = {
    'session': BASICS + [many_ids] + RUNGS + [last_write, commit_while_it_writes, apparmor, scope, oci_scope, no_systemd_to_ask, memory_limit, memory_bomb, update, nothing_left],
    'delegated': [doctor] + CGROUPS + LIMITS + [oci_limits, oci_events, nothing_left],
    'plain': BASICS + [one_id] + RUNGS + [last_write, commit_while_it_writes, apparmor, limit_without_cgroup, nothing_left],
    'slurm': [load, job_is_not_left, job_limits, job_end, job_container, nothing_left],
    'selinux': [load, selinux_labels, selinux_enforced, selinux_mounts, selinux_volumes, selinux_exec, selinux_unknown, selinux_bundle,
                nothing_left],
    'selinux1': [load, selinux_labels, selinux_mounts, selinux_volumes, nothing_left],
    'podman': PODMAN,
    'rootful': PODMAN,
    'asroot': [oci_binds_of_root, oci_scope_devices, oci_scope_of_root],
    'nofuse': [doctor, hello, lifecycle] + RUNGS + [nothing_left],
}


def clean_up(group):
    """What a failed test left must not fail the next."""
    try:
        if GROUPS[group] is PODMAN:
            podman('pod', 'rm', '-fa', '-t', '0', status=None)
            podman('rm', '-fa', '-t', '0', status=None)
            return
        left = skiff('ps', '-aq', status=None).stdout.split()
        if left:
            skiff('rm', '-f', *left, status=None)
    except AssertionError as error:
        print('  cleaning up: %s' % error)


def main(group, words):
    counts = {'passed': 0, 'failed': 0, 'skipped': 0}
    os.chdir(WORK)
    try:
        podman_ready() if GROUPS[group] is PODMAN else load_tiny()
    except Exception as error:
        print('loading the image: %s' % error)
    for test in GROUPS[group]:
        name = test.__name__.strip('_')
        if words and not any(word in name for word in words):
            continue
        began, why = time.monotonic(), ''
        try:
            test()
            verdict = 'passed'
        except Exception as error:
            verdict = 'failed'
            place = traceback.extract_tb(error.__traceback__)
            line = next(frame for frame in reversed(place) if frame.name == test.__name__)
            why = ', line %d: %s' % (line.lineno, str(error).strip().replace('\n', '\n      ') or line.line)
        counts[verdict] += 1
        print('  %-7s %s %s (%.1f s)%s' % (verdict, group, name, time.monotonic() - began, why), flush=True)
        if verdict == 'failed':
            clean_up(group)
    shutil.rmtree(WORK, ignore_errors=True)
    print('%(passed)d passed, %(failed)d failed, %(skipped)d skipped' % counts)
    return counts['failed'] > 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1], sys.argv[2:]))
