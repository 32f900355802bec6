import * as path from 'node:path';
import * as v from 'valibot';
import { failed, messageOf } from '../errors.js';
import { spawnDetached } from '../host/exec.js';
import { identify, isAlive, type ProcessIdentity, signalProcess } from '../host/process-identity.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Reporter } from '../report/reporter.js';
import type { Journal, JournalEntry } from '../session/journal.js';
import type { UndoHandler } from '../session/undo.js';

export const THAW_KIND = 'thaw';

/** How long libvirt may wait for each answer of the agent: the bound of a freeze. */
export const FREEZE_TIMEOUT_SECONDS = 10;
const PING_TIMEOUT_SECONDS = 5;

/** libvirt's own setting for a domain that nobody changed: VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK. */
const AGENT_TIMEOUT_UNCHANGED = -2;

const record = v.object({
  connect: v.optional(v.string()),
  domain: v.object({ uuid: v.string(), name: v.string() }),
  qemu: v.object({ pid: v.number(), startTime: v.number(), bootId: v.string() }),
});

/** `thawed` or `frozen`, as the agent's guest-fsfreeze-status says. */
const freezeStatus = v.picklist(['thawed', 'frozen']);

async function status(virsh: Virsh, uuid: string): Promise<'thawed' | 'frozen'> {
  return v.parse(freezeStatus, await virsh.agentCommand(uuid, 'guest-fsfreeze-status', PING_TIMEOUT_SECONDS));
}

/** Why the guest cannot be quiesced now; undefined if its agent answers and nothing is frozen. */
export async function quiesceRefusal(virsh: Virsh, uuid: string): Promise<string | undefined> {
  const { state } = await virsh.state(uuid);
  if (state !== 'running') return `it is ${state}`;
  try {
    if ((await status(virsh, uuid)) === 'frozen') return 'somebody else has frozen its file systems already';
    return undefined;
  } catch (error) {
    return `its guest agent does not answer (${messageOf(error)})`;
  }
}

/** Who is to be thawed, should the freeze last. */
export interface FreezeSubject {
  readonly virsh: Virsh;
  readonly domain: { readonly uuid: string; readonly name: string };
  readonly qemu: ProcessIdentity;
  readonly journal: Journal;
  readonly reporter: Reporter;
}

function recordDebt({ virsh, domain, qemu, journal }: FreezeSubject): JournalEntry {
  const { connect } = virsh.options;
  return journal.intend(THAW_KIND, { connect, domain: { uuid: domain.uuid, name: domain.name }, qemu });
}

/**
 * Runs `snapshot`, which freezes the guest through its agent, with the agent's time bounded. Before, the debt to thaw the guest is
 * recorded: a freeze that the agent did not answer in time stays queued in the guest and comes into force when
 * the agent wakes. It is paid when the guest is seen thawed.
 */
export async function withFreeze(subject: FreezeSubject, snapshot: () => Promise<void>): Promise<void> {
  const debt = recordDebt(subject);
  await subject.virsh.agentTimeout(subject.domain.uuid, FREEZE_TIMEOUT_SECONDS);
  try {
    await snapshot();
  } finally {
    await payDebt(subject, debt);
  }
}

/** Thaws the guest now, or leaves the debt to cleanup, saying so. */
async function payDebt(subject: FreezeSubject, debt: JournalEntry): Promise<boolean> {
  const { virsh, domain, journal, reporter } = subject;
  try {
    await thaw(virsh.withSignal(undefined), domain.uuid);
    journal.undone(debt);
    return true;
  } catch (error) {
    reporter.warn(
      `it is not known whether the file systems of ${domain.name} are frozen (${messageOf(error)}): if it hangs, virsh domfsthaw ${domain.name}`,
    );
    return false;
  }
}

/** Sleeps, then becomes virsh. Arguments: seconds, virsh's own. */
const GUARD = 'sleep "$1"; shift; exec virsh "$@"';

/** A process that thaws the guest after the longest time that a freeze may last, should we be killed. */
async function startGuard({ virsh, domain, journal }: FreezeSubject): Promise<ProcessIdentity | undefined> {
  const { connect } = virsh.options;
  const target = connect === undefined ? [] : ['--connect', connect];
  const args = [
    '-c',
    GUARD,
    'sh',
    String(FREEZE_TIMEOUT_SECONDS),
    ...target,
    'domfsthaw',
    '--domain',
    domain.uuid,
  ];
  return identify(
    await spawnDetached('sh', args, { logFile: path.join(path.dirname(journal.file), 'thaw.log') }),
  );
}

/**
 * Freezes the guest's file systems through its agent while `work` is done, and thaws them whatever happens. Returns whether they
 * were frozen to the end; false when the work took longer than a freeze may.
 */
export async function whileFrozen(subject: FreezeSubject, work: () => Promise<void>): Promise<boolean> {
  const { virsh, domain } = subject;
  const debt = recordDebt(subject);
  await virsh.agentTimeout(domain.uuid, FREEZE_TIMEOUT_SECONDS);
  const guard = await startGuard(subject);
  const started = performance.now();
  try {
    await virsh.freeze(domain.uuid);
    await work();
    return performance.now() - started < FREEZE_TIMEOUT_SECONDS * 1000;
  } finally {
    const paid = await payDebt(subject, debt);
    if (paid && guard !== undefined) signalProcess(guard, 'SIGTERM');
  }
}

async function thaw(virsh: Virsh, uuid: string): Promise<void> {
  // The agent works through its queue in order: an answer now comes after any freeze asked for before.
  if ((await status(virsh, uuid)) === 'frozen') await virsh.thaw(uuid);
  await virsh.agentTimeout(uuid, AGENT_TIMEOUT_UNCHANGED);
}

/** Thaws the guest if the QEMU process that was frozen still runs and its file systems are still frozen. */
const undoThaw: UndoHandler = async (entry, context) => {
  const { connect, domain, qemu } = v.parse(record, entry.data);
  if (!isAlive(qemu)) return;
  const virsh = new Virsh({ connect, signal: context.signal });
  try {
    await thaw(virsh, domain.uuid);
  } catch (error) {
    throw failed(
      `it is not known whether the file systems of ${domain.name} are frozen: ${messageOf(error)}`,
      {
        hint: `if the guest hangs: virsh domfsthaw ${domain.name}; cleanup tries again`,
        cause: error,
      },
    );
  }
};

export const thawUndo = { [THAW_KIND]: undoThaw };
