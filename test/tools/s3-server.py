"""s3-server.py DIRECTORY PORT: OpenStack Swift with its S3 interface, in one directory, for tests; PORT and the three after it are taken.

Its processes end with it. Access key test:tester, secret testing.
"""

import ctypes
import os
import signal
import sys

from swift.common import utils

PR_SET_PDEATHSIG = 1

directory, port = sys.argv[1], int(sys.argv[2])
utils.SWIFT_CONF_FILE = os.path.join(directory, 'swift.conf')

COMMON = f"""[DEFAULT]
bind_ip = 127.0.0.1
user = root
swift_dir = {directory}
devices = {directory}/devices
mount_check = false
workers = 0
fallocate_reserve = 0
log_level = ERROR
"""

STORAGE = """[pipeline:main]
pipeline = {0}-server
[app:{0}-server]
use = egg:swift#{0}
"""

PROXY = """[pipeline:main]
pipeline = catch_errors cache s3api tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:cache]
use = egg:swift#memcache
""" + ''.join(f'[filter:{name}]\nuse = egg:swift#{name}\n' for name in ('catch_errors', 's3api', 'copy', 'slo', 'dlo'))


def write(name, content):
    with open(os.path.join(directory, name), 'w', encoding='ascii') as file:
        file.write(content)


def make_ring(name, number):
    from swift.common.ring import RingBuilder

    builder = RingBuilder(part_power=1, replicas=1, min_part_hours=0)
    where = {'ip': '127.0.0.1', 'port': number, 'replication_ip': '127.0.0.1', 'replication_port': number}
    builder.add_dev({'region': 1, 'zone': 1, 'device': 'disk', 'weight': 1, **where})
    builder.rebalance()
    builder.get_ring().save(os.path.join(directory, f'{name}.ring.gz'))


def serve(name, number, sections):
    """Becomes one of the servers in a child."""
    write(f'{name}.conf', COMMON + f'bind_port = {number}\n' + sections)
    parent = os.getpid()
    if os.fork() != 0:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()
    from swift.common.wsgi import run_wsgi

    sys.exit(run_wsgi(os.path.join(directory, f'{name}.conf'), f'{name}-server'))


os.makedirs(os.path.join(directory, 'devices/disk'))
write('swift.conf', '[swift-hash]\nswift_hash_path_suffix = test\n')
SERVERS = ['account', 'container', 'object']
for offset, server in enumerate(SERVERS, 1):
    make_ring(server, port + offset)
for offset, server in enumerate(SERVERS, 1):
    serve(server, port + offset, STORAGE.format(server))
serve('proxy', port, PROXY)
signal.pause()
