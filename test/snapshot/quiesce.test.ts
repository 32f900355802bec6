import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { overlayProvider } from '../../src/snapshot/overlay/provider.js';
import { whileFrozen } from '../../src/snapshot/quiesce.js';
import { eventually, makeImage, type TestDomain, TestLibvirt } from '../support/libvirt.js';
import { SnapshotSession } from '../support/snapshot-session.js';

const MIB = 1024 * 1024;

/**
 * A guest with an agent, as far as virsh shows it: the script keeps whether the file systems are frozen in a file, and
 * fails as a hung agent makes virsh fail. All else is done by the real virsh, on a real domain.
 */
const AGENT = `
log() { echo "$*" >>"$STATE/log"; }
hung() { echo 'error: Guest agent is not responding' >&2; exit 1; }
case " $* " in
  *guest-fsfreeze-status*)
    [ -e "$STATE/hung" ] && hung
    echo "{\\"return\\":\\"$(cat "$STATE/freeze")\\"}"; exit;;
  *" guest-agent-timeout "*) log "timeout \${@: -1}"; exit;;
  *" domfsfreeze "*) log freeze; [ -e "$STATE/hung" ] && hung; echo frozen >"$STATE/freeze"; exit;;
  *" domfsthaw "*) log thaw; [ -e "$STATE/hung" ] && hung; echo thawed >"$STATE/freeze"; exit;;
  *" snapshot-create "*--quiesce*)
    log quiesced
    if [ -e "$STATE/hang" ]; then
      # The request stays queued in the guest.
      echo frozen >"$STATE/freeze"; touch "$STATE/hung"; hung
    fi
    if [ -e "$STATE/fail" ]; then echo frozen >"$STATE/freeze"; hung; fi
    for word; do shift; [ "$word" = --quiesce ] || set -- "$@" "$word"; done;;
esac
`;

let libvirt: TestLibvirt;
let domain: TestDomain;
let session: SnapshotSession;
let state: string;
let image: string;
let count = 0;
const realPath = process.env.PATH;

beforeAll(async () => {
  libvirt = await TestLibvirt.start();
  fs.mkdirSync(path.join(libvirt.directory, 'images'));
  image = path.join(libvirt.directory, 'images', 'a.img');
  await makeImage(image, 'raw', MIB);
  domain = await libvirt.define('quiesced', [{ target: 'vda', path: image, format: 'raw' }]);
});

afterAll(() => libvirt?.close());

beforeEach(() => {
  count++;
  state = path.join(libvirt.directory, `agent-${count}`);
  fs.mkdirSync(state);
  fs.writeFileSync(path.join(state, 'freeze'), 'thawed\n');
  fs.writeFileSync(path.join(state, 'log'), '');
  const script = `#!/bin/bash\nSTATE='${state}'\nPATH='${realPath}'\n${AGENT}\nexec virsh "$@"\n`;
  fs.writeFileSync(path.join(state, 'virsh'), script, { mode: 0o755 });
  process.env.PATH = `${state}:${realPath}`;
  session = new SnapshotSession(libvirt.virsh, path.join(libvirt.directory, `session-${count}`), `q${count}`);
});

afterEach(async () => {
  await session.undo();
  process.env.PATH = realPath;
});

const set = (name: string) => fs.writeFileSync(path.join(state, name), '');
const clear = (name: string) => fs.rmSync(path.join(state, name));
const freezeState = () => fs.readFileSync(path.join(state, 'freeze'), 'utf8').trim();
const log = () => fs.readFileSync(path.join(state, 'log'), 'utf8').trim().split('\n').filter(Boolean);
const kinds = () => session.journal.pending().map(({ kind }) => kind);
const files = () => fs.readdirSync(path.dirname(image));

describe('the guest answers', () => {
  it.each(['try', 'require'] as const)(
    '--quiesce=%s: frozen, and its time limit is taken back',
    async (quiesce) => {
      const snapshot = await session.freeze(overlayProvider, domain.name, { quiesce });
      expect(snapshot.consistency).toBe('filesystem');
      expect(log()).toEqual(['timeout 10', 'quiesced', 'timeout -2']);
      expect(kinds()).toEqual(['hold', 'overlay']);
    },
  );

  it('the freeze failed and left it frozen: thawed at once', async () => {
    set('fail');
    const snapshot = await session.freeze(overlayProvider, domain.name, { quiesce: 'try' });
    expect(snapshot.consistency).toBe('crash');
    expect(freezeState()).toBe('thawed');
    expect(session.reporter.messages.join('\n')).toMatch(/warn: .*not responding.*as after a power failure/);
    expect(await session.undo()).toEqual([]);
    expect(files()).toEqual(['a.img']);
  });

  it('somebody else has frozen it: left alone', async () => {
    fs.writeFileSync(path.join(state, 'freeze'), 'frozen\n');
    const snapshot = await session.freeze(overlayProvider, domain.name, { quiesce: 'try' });
    expect(snapshot.consistency).toBe('crash');
    expect(await session.undo()).toEqual([]);
    expect(freezeState()).toBe('frozen');
    expect(log()).toEqual([]);
  });
});

describe('the guest hangs', () => {
  it('before: nothing is frozen, and it is said or an error', async () => {
    set('hung');
    await expect(session.freeze(overlayProvider, domain.name, { quiesce: 'require' })).rejects.toThrow(
      /not responding/,
    );
    expect(kinds()).toEqual([]);
    const snapshot = await session.freeze(overlayProvider, domain.name, { quiesce: 'try' });
    expect(snapshot.consistency).toBe('crash');
    expect(log()).toEqual([]);
  });

  it('during the freeze, which comes into force later: the debt to thaw it is kept until it is paid', async () => {
    set('hang');
    const snapshot = await session.freeze(overlayProvider, domain.name, { quiesce: 'try' });
    expect(snapshot.consistency).toBe('crash');
    expect(kinds()).toContain('thaw');
    expect(session.reporter.messages.join('\n')).toContain('virsh domfsthaw quiesced');
    const [error] = await session.undo();
    expect(error).toMatchObject({
      message: expect.stringContaining('it is not known whether the file systems of quiesced are frozen'),
    });
    expect(kinds()).toEqual(['thaw']);
    expect(files()).toEqual(['a.img']);
    clear('hung');
    clear('hang');
    expect(await session.undo()).toEqual([]);
    expect(freezeState()).toBe('thawed');
    expect(kinds()).toEqual([]);
  });

  it('and the VM was stopped: nothing is left to thaw', async () => {
    set('hang');
    await expect(session.freeze(overlayProvider, domain.name, { quiesce: 'require' })).rejects.toThrow(
      /not responding/,
    );
    await libvirt.killQemu(domain);
    expect(await session.undo()).toEqual([]);
    expect(files()).toEqual(['a.img']);
    await libvirt.virsh.start(domain.uuid);
  });
});

describe('a freeze around other snapshots', () => {
  const subject = () => ({
    virsh: libvirt.virsh,
    domain,
    qemu: libvirt.qemu(domain),
    journal: session.journal,
    reporter: session.reporter,
  });

  it('lasts as long as the work, also when that fails', async () => {
    expect(await whileFrozen(subject(), async () => expect(freezeState()).toBe('frozen'))).toBe(true);
    expect(freezeState()).toBe('thawed');
    const failing = whileFrozen(subject(), () => Promise.reject(new Error('no space')));
    await expect(failing).rejects.toThrow('no space');
    expect(freezeState()).toBe('thawed');
    expect(kinds()).toEqual([]);
  });

  it('ends after ten seconds whatever happens to us', async () => {
    const started = Date.now();
    const whole = await whileFrozen(subject(), () => eventually(async () => freezeState() === 'thawed'));
    expect(whole).toBe(false);
    expect(Date.now() - started).toBeGreaterThan(9_000);
  });

  it('what cannot be frozen is not worked on', async () => {
    set('hung');
    let worked = false;
    const frozen = whileFrozen(subject(), async () => {
      worked = true;
    });
    await expect(frozen).rejects.toThrow(/not responding/);
    expect(worked).toBe(false);
    clear('hung');
  });
});
