import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { mountAt } from '../../src/host/mountinfo.js';
import { findProcesses } from '../../src/host/process-list.js';
import { eventually, toldError, traces } from '../cli/expectations.js';
import { CLI, TestChunkmount } from '../support/chunkmount.js';
import { makeImage, TestLibvirt } from '../support/libvirt.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';

const UNITS = path.resolve(import.meta.dirname, '../../examples/systemd');
const MIB = 1024 * 1024;

/** A socket as systemd has one for Type=notify: prints what comes, a line each. */
const LISTEN = `import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind(sys.argv[1])
while True: print(s.recv(4096).decode().replace("\\n", " "), flush=True)`;

/** There is no systemd in the sandbox: it checks the units, and what they run is run as it would. */
describe('the units of systemd', () => {
  const chunkmount = new TestChunkmount();
  const store = chunkmount.path('store');
  const mail01 = chunkmount.tree('mail01');
  let libvirt: TestLibvirt;

  beforeAll(async () => {
    await requireAll(
      root,
      fuseDevice,
      program('systemd-analyze', 'systemd'),
      program('rsync'),
      program('python3'),
    );
    libvirt = await TestLibvirt.start();
    const vda = chunkmount.path('vda.qcow2');
    await makeImage(vda, 'qcow2', MIB, 0x11);
    await libvirt.define('mail01', [{ target: 'vda', path: vda, format: 'qcow2' }]);
  });

  afterEach(async () => {
    const left = traces(chunkmount);
    if (left.length > 0) await chunkmount.run(['cleanup', '--all']);
    expect(left).toEqual([]);
  });

  afterAll(async () => {
    await libvirt?.close();
    await chunkmount.close();
  });

  const read = (unit: string) => fs.readFileSync(path.join(UNITS, unit), 'utf8').replaceAll('\\\n', '');

  /** What a setting of a unit for mail01 runs, as systemd makes it out; see systemd.service(5), "Command lines". */
  function commandLine(unit: string, setting: string): string[] {
    const value = new RegExp(`^${setting}=(.*)$`, 'm').exec(read(unit))?.[1];
    if (value === undefined) throw new Error(`${unit} has no ${setting}`);
    const text = value.replaceAll('%i', 'mail01').replaceAll('/usr/bin/chunkmount', CLI);
    const words = [...text.matchAll(/'([^']*)'|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain!);
    return words.map((word) =>
      word === '$CHUNKMOUNT_OPTIONS' ? `--connect=${libvirt.uri}` : word.replaceAll('$$', '$'),
    );
  }

  function start(unit: string, setting: string, env: Readonly<Record<string, string>> = {}) {
    const [command = '', ...args] = commandLine(unit, setting);
    return execa(command, args, {
      env: { ...chunkmount.env, STORE: store, ...env },
      reject: false,
      stdin: 'ignore',
      timeout: 60_000,
    });
  }

  it('are right, systemd says', async () => {
    const directory = chunkmount.path('units');
    fs.mkdirSync(directory);
    const names = fs.readdirSync(UNITS).map((unit) => {
      const name = unit.replace('@', '@mail01');
      fs.writeFileSync(path.join(directory, name), read(unit).replaceAll('/usr/bin/chunkmount', CLI));
      return name;
    });
    expect(names).toHaveLength(4);
    const files = names.map((name) => path.join(directory, name));
    const { exitCode, stderr } = await execa('systemd-analyze', ['verify', '--man=no', ...files], {
      reject: false,
    });
    // It looks at units of the machine that these name, too.
    expect(stderr.split('\n').filter((line) => line.includes('chunkmount'))).toEqual([]);
    expect(exitCode).toBe(0);
  });

  describe('chunkmount@', () => {
    it('is ready when the tree is there, and cleans up when it is stopped', async () => {
      const socket = chunkmount.path('notify');
      const listener = execa('python3', ['-c', LISTEN, socket], { buffer: false, reject: false });
      let heard = '';
      listener.stdout.on('data', (data) => {
        heard += data;
      });
      await eventually(() => fs.existsSync(socket));
      const running = start('chunkmount@.service', 'ExecStart', { NOTIFY_SOCKET: socket });
      await eventually(() => heard.includes('READY=1'));
      expect(heard).toContain(`STATUS=${mail01}`);
      expect(fs.existsSync(path.join(mail01, 'manifest.json'))).toBe(true);
      listener.kill();
      await listener;
      running.kill('SIGTERM');
      expect(await running).toMatchObject({ exitCode: 143 });
    });

    it('fails when the daemon dies', async () => {
      const running = start('chunkmount@.service', 'ExecStart');
      await eventually(() => mountAt(mail01) !== undefined);
      await eventually(() => fs.existsSync(chunkmount.path('state/sessions/mail01/session.json')));
      const [daemon] = findProcesses((argv) => argv.at(-1)?.endsWith('/sessions/mail01') === true);
      process.kill(daemon!.pid, 'SIGKILL');
      const { exitCode, stderr } = await running;
      expect(exitCode).toBe(1);
      expect(toldError(`${stderr}\n`).message).toMatch(/daemon of mail01 died/);
    });

    it('cleans up after it was killed, and only then', async () => {
      const running = start('chunkmount@.service', 'ExecStart');
      await eventually(() => fs.existsSync(chunkmount.path('state/sessions/mail01/session.json')));
      const exited = await start('chunkmount@.service', 'ExecStopPost', { EXIT_CODE: 'exited' });
      expect(exited.exitCode).toBe(0);
      expect(mountAt(mail01)).toBeDefined();
      running.kill('SIGKILL');
      await running;
      const killed = await start('chunkmount@.service', 'ExecStopPost', { EXIT_CODE: 'killed' });
      expect(killed).toMatchObject({ exitCode: 0, stderr: '' });
    });

    it('warns when it cannot say that it is ready, and serves', async () => {
      const running = start('chunkmount@.service', 'ExecStart', {
        NOTIFY_SOCKET: chunkmount.path('no/such/socket'),
      });
      await eventually(() => mountAt(mail01) !== undefined);
      await eventually(() => fs.existsSync(chunkmount.path('state/sessions/mail01/session.json')));
      await new Promise((resolve) => setTimeout(resolve, 300));
      running.kill('SIGTERM');
      const { exitCode, stderr } = await running;
      expect(exitCode).toBe(143);
      expect(stderr).toMatch(/warning: the service manager could not be told: systemd-notify failed/);
    });
  });

  it('chunkmount-backup@ copies a tree that can be verified', async () => {
    const { exitCode, stderr } = await start('chunkmount-backup@.service', 'ExecStart');
    expect(exitCode, stderr).toBe(0);
    await chunkmount.succeed('verify', path.join(store, 'mail01'));
    // It has nothing to do after a success.
    const after = await start('chunkmount-backup@.service', 'ExecStopPost', { EXIT_CODE: 'exited' });
    expect(after).toMatchObject({ exitCode: 0, stderr: '' });
  });

  it('chunkmount-cleanup ends what is left', async () => {
    await chunkmount.succeed('--vm=mail01', `--connect=${libvirt.uri}`);
    expect(await start('chunkmount-cleanup.service', 'ExecStart')).toMatchObject({ exitCode: 0, stderr: '' });
    // Where systemd looks whether there is anything to do.
    expect(/^ConditionDirectoryNotEmpty=(.*)$/m.exec(read('chunkmount-cleanup.service'))?.[1]).toBe(
      '/var/lib/chunkmount/sessions',
    );
  });
});
