import { Command } from 'commander';
import { keptWarnings } from '../backup/kept-space.js';
import {
  type KeptSummary,
  listKept,
  listSessions,
  type SessionState,
  type SessionSummary,
} from '../backup/list-sessions.js';
import { formatBytes, formatDuration } from '../report/format.js';
import { tableLines } from '../report/table.js';
import { addDirectoryOptions, type DirectoryOptions, stateDirectory } from './backup-options.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';

const HELP = `
A line each, with how many of its chunks were looked at and have changed, how much was read from the tree, how much its
overlays have grown by, and what is left where they lie. On a terminal that is too narrow, a block of lines each.

States: mounted; working (a command begins or ends it, or dumps); failed (chunks could not be read, or a snapshot is lost:
the backup is not whole); dead (the daemon is gone); incomplete (beginning or cleaning up was cut off); locked (by
--keep-lock). The last is ended with chunkmount unlock; failed, dead and incomplete, as mounted, with chunkmount cleanup.

Exit status: 0.

Examples:
  chunkmount list
  chunkmount list --json | jq -r '.sessions[] | select(.state != "mounted") | .name'`;

const HEAD = [
  'NAME',
  'STATE',
  'MOUNTPOINT',
  'DISKS',
  'AGE',
  'SCANNED',
  'CHANGED',
  'READ',
  'OVERLAYS',
  'FREE',
] as const;

/** Something has to be done about these. */
const BAD: readonly SessionState[] = ['failed', 'dead', 'incomplete'];

interface Look {
  /** Characters in a line. */
  readonly width: number;
  readonly coloured: boolean;
}

/** A terminal has a width, and shows colours unless it is told not to (https://no-color.org). */
function lookOf(stdout: NodeJS.WritableStream): Look {
  const terminal = stdout as Partial<NodeJS.WriteStream>;
  if (terminal.isTTY !== true) return { width: Number.POSITIVE_INFINITY, coloured: false };
  const { NO_COLOR = '', TERM } = process.env;
  return { width: terminal.columns || 80, coloured: NO_COLOR === '' && TERM !== 'dumb' };
}

function stateText({ state, kept }: SessionSummary, coloured: boolean): string {
  const text = state + (kept && state !== 'locked' ? ', lock kept' : '');
  return coloured && BAD.includes(state) ? `\x1b[1;31m${text}\x1b[0m` : text;
}

function scannedPart({ resolved, chunks }: { resolved: number; chunks: number }): string {
  return `${chunks === 0 ? 100 : Math.floor((100 * resolved) / chunks)} %`;
}

function row(session: SessionSummary, coloured: boolean): string[] {
  const { daemon, space } = session;
  return [
    session.name,
    stateText(session, coloured),
    session.mountpoint ?? '-',
    session.disks.map(({ target, snapshot }) => `${target}:${snapshot}`).join(' ') || '-',
    session.age === null ? '-' : formatDuration(session.age),
    daemon === null ? '-' : scannedPart(daemon.scan),
    daemon === null ? '-' : String(daemon.scan.changed),
    daemon === null ? '-' : formatBytes(daemon.counters.bytesRead),
    space.length === 0 ? '-' : formatBytes(space.reduce((sum, { used }) => sum + used, 0)),
    space.length === 0 ? '-' : formatBytes(Math.min(...space.map(({ free }) => free))),
  ];
}

function keptSentence({ name, target, kind, space: [space] }: KeptSummary): string {
  const size =
    space === undefined ? '' : `, ${formatBytes(space.used)}, ${formatBytes(space.free)} left where it lies`;
  return `${name}: the snapshot of disk ${target} (${kind}${size}) is kept for the next session; chunkmount cleanup --kept --vm=${name} ends it`;
}

/** Shows all sessions. */
export async function runList(options: DirectoryOptions, context: CommandContext): Promise<void> {
  const state = stateDirectory(options);
  const sessions = await listSessions(state);
  const kept = listKept(state);
  const { width, coloured } = lookOf(context.stdout);
  const rows = sessions.map((session) => row(session, coloured));
  printResult(context, { sessions, kept }, rows.length === 0 ? [] : tableLines(HEAD, rows, width));
  for (const { name, daemon } of sessions)
    for (const warning of [...(daemon?.warnings ?? []), ...(daemon?.lost ?? [])])
      context.reporter.warn(`${name}: ${warning}`);
  for (const one of kept) context.reporter.notice(keptSentence(one));
  for (const name of state.kept())
    for (const warning of keptWarnings({ name, state })) context.reporter.warn(warning);
  if (sessions.length === 0) context.reporter.notice('there are no sessions');
}

export const listCommand: CommandModule = (context) =>
  addDirectoryOptions(new Command('list'))
    .description('show sessions: state, mountpoint, snapshots, age, space left')
    .addHelpText('after', HELP)
    .action(async (options: DirectoryOptions) => runList(options, context()));
