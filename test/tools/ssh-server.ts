import * as fs from 'node:fs';
import * as net from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { execa } from 'execa';
import type { BackedUpVm } from './backed-up-vm.js';

/** sshd wants it to be there. */
const EMPTY_DIRECTORY = '/run/sshd';
const HOST = 'hypervisor1';

async function freePort(): Promise<number> {
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as net.AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** sshd wants to be called by its whole path. */
function startServer(config: string) {
  return execa('/usr/sbin/sshd', ['-D', '-e', '-f', config], { reject: false, stdin: 'ignore' });
}

async function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect(port, '127.0.0.1');
    socket.once('data', () => resolve(true)).once('close', () => resolve(false));
    socket.once('error', () => resolve(false));
    setTimeout(() => socket.destroy(), 1000).unref();
  });
}

/** An sshd of our own on which root logs in with a key, as hypervisor1, and finds `chunkmount` as the VM's tests do. */
export class SshServer {
  private constructor(
    private readonly vm: BackedUpVm,
    private readonly port: number,
    private readonly server: ReturnType<typeof startServer>,
  ) {}

  static async start(vm: BackedUpVm): Promise<SshServer> {
    for (const key of ['host', 'client'])
      await vm.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-C', '', '-f', vm.path(key)]);
    const port = await freePort();
    const variables = Object.entries(vm.env).map(([name, value]) => `${name}=${value}`);
    vm.write(
      'sshd_config',
      `ListenAddress 127.0.0.1:${port}
HostKey ${vm.path('host')}
AuthorizedKeysFile ${vm.path('client.pub')}
StrictModes no
UsePAM yes
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
SetEnv ${variables.join(' ')}
`,
    );
    fs.mkdirSync(EMPTY_DIRECTORY, { recursive: true });
    const server = startServer(vm.path('sshd_config'));
    const ssh = new SshServer(vm, port, server);
    for (let attempt = 0; !(await answers(port)); attempt++) {
      if (attempt === 100 || server.exitCode !== null) throw new Error(`sshd: ${(await ssh.close()).stderr}`);
      await pause(100);
    }
    ssh.addClient('bin/ssh', 0);
    return ssh;
  }

  /** Makes an `ssh` for a user. Who has our PATH finds `bin/ssh` first. */
  addClient(name: string, uid: number): void {
    const directory = this.vm.path(`client-${uid}`);
    fs.mkdirSync(directory, { mode: 0o700 });
    fs.copyFileSync(this.vm.path('client'), `${directory}/key`);
    const [type, key] = fs.readFileSync(this.vm.path('host.pub'), 'utf8').split(' ');
    fs.writeFileSync(`${directory}/known_hosts`, `${HOST} ${type} ${key}`);
    const config = `Host *
  HostName 127.0.0.1
  Port ${this.port}
  HostKeyAlias ${HOST}
  IdentityFile ${directory}/key
  UserKnownHostsFile ${directory}/known_hosts
  BatchMode yes
`;
    fs.writeFileSync(`${directory}/config`, config);
    for (const file of ['', '/key', '/known_hosts', '/config']) fs.chownSync(directory + file, uid, -1);
    this.vm.write(name, `#!/bin/sh\nexec /usr/bin/ssh -F '${directory}/config' "$@"\n`, 0o755);
  }

  /** Ends it. Returns what it said. */
  async close(): Promise<{ stderr: string }> {
    this.server.kill();
    return { stderr: String((await this.server).stderr) };
  }
}
