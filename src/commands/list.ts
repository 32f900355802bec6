import Table from 'cli-table3';
import { Command } from 'commander';
import { listSessions, type SessionSummary } from '../backup/list-sessions.js';
import { formatBytes, formatDuration } from '../report/format.js';
import { addDirectoryOptions, type DirectoryOptions, stateDirectory } from './backup-options.js';
import { type CommandContext, type CommandModule, printResult } from './context.js';

const HELP = `
States: mounted; working (a command begins it, or dumps); failed (chunks could not be read, or a snapshot is lost: the backup is not whole);
dead (the daemon is gone); incomplete (beginning or cleaning up was cut off); locked (by --keep-lock). The last is ended
with chunkmount unlock; failed, dead and incomplete, as mounted, with chunkmount cleanup.

Exit status: 0.`;

/** Only spaces between columns: it can be read, cut and grepped. */
const PLAIN = {
  chars: Object.fromEntries(
    ['top', 'top-mid', 'top-left', 'top-right', 'bottom', 'bottom-mid', 'bottom-left', 'bottom-right']
      .concat(['left', 'left-mid', 'mid', 'mid-mid', 'right', 'right-mid', 'middle'])
      .map((name) => [name, name === 'middle' ? '  ' : '']),
  ),
  style: { 'padding-left': 0, 'padding-right': 0, head: [], border: [] },
};

function row(session: SessionSummary): string[] {
  const { daemon, space } = session;
  const { resolved = 0, chunks = 0 } = daemon?.scan ?? {};
  const scanned = chunks === 0 ? 100 : Math.floor((100 * resolved) / chunks);
  return [
    session.name,
    session.state + (session.kept && session.state !== 'locked' ? ', lock kept' : ''),
    session.mountpoint ?? '-',
    session.disks.map(({ target, snapshot }) => `${target}:${snapshot}`).join(' ') || '-',
    session.age === null ? '-' : formatDuration(session.age),
    daemon === null ? '-' : `${scanned} %`,
    daemon === null ? '-' : String(daemon.scan.changed),
    space.length === 0
      ? '-'
      : `${formatBytes(space.reduce((sum, { used }) => sum + used, 0))}, ${formatBytes(Math.min(...space.map(({ free }) => free)))} free`,
  ];
}

/** Shows all sessions. */
export async function runList(options: DirectoryOptions, context: CommandContext): Promise<void> {
  const sessions = await listSessions(stateDirectory(options));
  const head = ['NAME', 'STATE', 'MOUNTPOINT', 'DISKS', 'AGE', 'SCANNED', 'CHANGED', 'OVERLAYS'];
  const table = new Table({ ...PLAIN, head });
  table.push(...sessions.map(row));
  const lines =
    sessions.length === 0
      ? []
      : table
          .toString()
          .split('\n')
          .map((line) => line.trimEnd());
  printResult(context, { sessions }, lines);
  for (const { name, daemon } of sessions)
    for (const warning of [...(daemon?.warnings ?? []), ...(daemon?.lost ?? [])])
      context.reporter.warn(`${name}: ${warning}`);
  if (sessions.length === 0) context.reporter.notice('there are no sessions');
}

export const listCommand: CommandModule = (context) =>
  addDirectoryOptions(new Command('list'))
    .description('show sessions: state, mountpoint, snapshots, age, space left')
    .addHelpText('after', HELP)
    .action(async (options: DirectoryOptions) => runList(options, context()));
