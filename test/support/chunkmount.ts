import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { execa } from 'execa';
import { COMMAND_TIMEOUT_MS } from './timeouts.js';

/** The built program, as a user runs it. */
export const CLI = path.resolve(import.meta.dirname, '../../dist/cli.js');

export interface CliResult {
  readonly exitCode: number | undefined;
  readonly stdout: string;
  readonly stderr: string;
}

/** Throws what `late` says if there is no result after this many milliseconds. */
async function within<T>(milliseconds: number, result: PromiseLike<T>, late: () => string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const tooLate = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(late())), milliseconds);
  });
  try {
    return await Promise.race([result, tooLate]);
  } finally {
    clearTimeout(timer);
  }
}

/** What each of these processes' threads waits for in the kernel, by their arguments or environment: daemons have ours. */
function processesThatMention(directory: string): string[] {
  const read = (...names: string[]) => {
    try {
      return fs.readFileSync(path.join('/proc', ...names), 'utf8').replaceAll('\0', ' ');
    } catch {
      return '';
    }
  };
  const found = [];
  for (const pid of fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    const command = read(pid, 'cmdline');
    if (!`${command} ${read(pid, 'environ')}`.includes(directory)) continue;
    const threads = fs.existsSync(`/proc/${pid}/task`) ? fs.readdirSync(`/proc/${pid}/task`) : [];
    found.push(
      `${pid} [${threads.map((thread) => read(pid, 'task', thread, 'wchan'))}] ${command.slice(0, 300)}`,
    );
  }
  return found;
}

/** chunkmount with directories of its own, so that tests do not meet. */
export class TestChunkmount {
  readonly directory = fs.mkdtempSync(path.join(fs.realpathSync(os.tmpdir()), 'cm-cli-'));
  readonly backupDirectory = path.join(this.directory, 'backup');
  readonly stateDirectory = path.join(this.directory, 'state');

  get env(): Record<string, string> {
    return { CHUNKMOUNT_BACKUPDIR: this.backupDirectory, CHUNKMOUNT_STATEDIR: this.stateDirectory };
  }

  path(...names: string[]): string {
    return path.join(this.directory, ...names);
  }

  tree(name: string): string {
    return path.join(this.backupDirectory, name);
  }

  /** Starts it; `env` comes on top. */
  start(args: readonly string[], env: Readonly<Record<string, string>> = {}) {
    return execa(process.execPath, [CLI, ...args], {
      env: { ...this.env, ...env },
      reject: false,
      stdin: 'ignore',
      stripFinalNewline: false,
    });
  }

  /** Runs it to its end, whatever that is. If it does not come to it in time, throws with what it said and what runs then. */
  async run(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<CliResult> {
    const command = this.start(args, env);
    let said = '';
    command.stderr.on('data', (data) => {
      said += data;
    });
    const { exitCode, stdout, stderr } = await within(COMMAND_TIMEOUT_MS, command, () => {
      const running = processesThatMention(this.directory);
      command.kill('SIGKILL');
      return `chunkmount ${args.join(' ')} does not end\n${said}\n${running.join('\n')}`;
    });
    return { exitCode, stdout: String(stdout), stderr: String(stderr) };
  }

  /** Runs it; throws with what it said unless it exits with 0. Returns its stdout. */
  async succeed(...args: string[]): Promise<string> {
    const result = await this.run(args);
    if (result.exitCode !== 0)
      throw new Error(`chunkmount ${args.join(' ')}: ${result.exitCode}\n${result.stderr}`);
    return result.stdout;
  }

  /** Ends all sessions and removes every trace. */
  async close(): Promise<void> {
    const { exitCode, stderr } = await this.run(['cleanup', '--all']);
    if (exitCode !== 0 && !fs.existsSync(path.join(this.stateDirectory, 'sessions'))) throw new Error(stderr);
    fs.rmSync(this.directory, { recursive: true, force: true });
  }
}

/** What rsync -a would do or did: the files it sent, and the bytes. */
export interface RsyncReport {
  readonly files: string[];
  readonly literalBytes: number;
}

/** `rsync -a --delete SOURCE/ DESTINATION/` with more options, which prints what `rsyncReport` reads. */
export function rsyncCommand(source: string, destination: string, ...options: string[]): string[] {
  const shown = ['--itemize-changes', '--stats', ...options];
  return ['env', 'LC_ALL=C', 'rsync', '-a', '--delete', ...shown, `${source}/`, `${destination}/`];
}

export function rsyncReport(stdout: string): RsyncReport {
  const literal = /^Literal data: ([0-9,]+) bytes$/m.exec(stdout);
  return {
    files: [...stdout.matchAll(/^[<>]f\S+ (.*)$/gm)].map((match) => match[1]!),
    literalBytes: Number(literal?.[1]?.replaceAll(',', '')),
  };
}

/** Runs `rsyncCommand`. */
export async function rsync(source: string, destination: string, ...options: string[]): Promise<RsyncReport> {
  const [program = '', ...args] = rsyncCommand(source, destination, ...options);
  return rsyncReport((await execa(program, args)).stdout);
}

/** The chunk files among paths of a tree. */
export function chunksAmong(files: readonly string[]): string[] {
  return files.filter((file) => /\/[0-9a-f]{6}\/[0-9a-f]{8}$/.test(file));
}
