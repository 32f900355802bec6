import { randomBytes } from 'node:crypto';
import { spawnToTalkTo } from '../host/exec.js';

/** Who has no answer by then asks in another way. libvirt takes a millisecond; a busy host makes it more. */
const PATIENCE_MS = 2_000;
/** A connection that nobody uses is one less for others: libvirtd has a limit. */
const IDLE_MS = 5_000;
/** What has failed mostly fails again, and may take all our patience for it. */
const RETRY_MS = 5_000;

/** Means nothing to virsh's own reader of command lines: no quotes, no blanks, no `;`, no comment. */
const PLAIN_WORD = /^[\w./:@+=,-]+$/;

/**
 * Readline, which reads for virsh, would write what we ask into the administrator's history, and take bindings from a file of theirs.
 * A directory that cannot be made is the one way to have no history: a size of 0 would empty it.
 */
const ENVIRONMENT = { XDG_CACHE_HOME: '/dev/null', INPUTRC: '/dev/null', TERM: 'dumb' };

/** What is between the first two marks of a text; undefined until both are there. */
function between(text: string, mark: string): string | undefined {
  const begin = text.indexOf(mark);
  const end = begin === -1 ? -1 : text.indexOf(mark, begin + mark.length);
  return end === -1 ? undefined : text.slice(begin + mark.length, end);
}

/**
 * One virsh that is asked many questions, one after the other: a virsh of its own for each takes 20 to 40 ms, nearly all of it to
 * load its libraries. It prints prompts and what it was asked, too, so answers stand between marks that no guest can know.
 */
class VirshShell {
  readonly #child: ReturnType<typeof spawnToTalkTo>;
  readonly #nonce = randomBytes(8).toString('hex');
  #questions = 0;
  #stdout = '';
  #stderr = '';
  #heard = () => {};
  #last: Promise<unknown> = Promise.resolve();
  #idle: NodeJS.Timeout | undefined;
  #state: 'running' | 'left' | 'failed' = 'running';
  #endedAt = 0;

  constructor(args: readonly string[]) {
    this.#child = spawnToTalkTo('virsh', args, ENVIRONMENT);
    const fail = () => this.end('failed');
    this.#child.on('error', fail).on('close', fail);
    const { stdin, stdout, stderr } = this.#child;
    for (const pipe of [stdin, stdout, stderr]) pipe.on('error', fail);
    this.#leaveWhenIdle();
    stdout.setEncoding('utf8').on('data', (text: string) => {
      this.#stdout += text;
      this.#heard();
    });
    stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text;
      this.#heard();
    });
  }

  /** Whether another is to be started in its place. */
  get isOver(): boolean {
    if (this.#state === 'failed') return performance.now() > this.#endedAt + RETRY_MS;
    return this.#state === 'left';
  }

  /** Ends it, whatever it waits for: nothing changes by what it is asked. What has no answer yet gets none. */
  end(state: 'left' | 'failed'): void {
    if (this.#state !== 'running') return;
    this.#state = state;
    this.#endedAt = performance.now();
    clearTimeout(this.#idle);
    // If it is a script around virsh, that is who notices.
    this.#child.stdin.destroy();
    this.#child.kill('SIGKILL');
    this.#heard();
  }

  /** What it prints for a command without a word on stderr, which virsh has for each that fails; else undefined. */
  ask(words: readonly string[]): Promise<string | undefined> {
    const answer = this.#last.then(() => this.#ask(words.join(' ')));
    this.#last = answer;
    return answer;
  }

  async #ask(command: string): Promise<string | undefined> {
    clearTimeout(this.#idle);
    if (this.#state !== 'running') return undefined;
    const name = `cm-${this.#nonce}-${++this.#questions}`;
    this.#stdout = '';
    this.#stderr = '';
    // `--xml` makes `&lt;` of `<`, so that the mark is another than what is echoed of this line. All that a command has to say on
    // stderr comes before the name does.
    const mark = `echo --xml '<${name}>'`;
    this.#child.stdin.write(`${mark}; ${command}; ${mark}; echo --err ${name}\n`);
    const output = await this.#answer(`&lt;${name}&gt;`, name);
    this.#leaveWhenIdle();
    return output;
  }

  #leaveWhenIdle(): void {
    this.#idle = setTimeout(() => this.end('left'), IDLE_MS).unref();
  }

  #answer(mark: string, name: string): Promise<string | undefined> {
    return new Promise((resolve) => {
      const done = (output: string | undefined) => {
        clearTimeout(timer);
        this.#heard = () => {};
        resolve(output);
      };
      const timer = setTimeout(() => this.end('failed'), PATIENCE_MS);
      this.#heard = () => {
        if (this.#state !== 'running') return done(undefined);
        if (!this.#stderr.endsWith(`${name}\n`)) return;
        const output = between(this.#stdout, mark);
        if (output !== undefined) done(this.#stderr === `error: ${name}\n` ? output : undefined);
      };
    });
  }
}

/** By virsh's arguments. */
const shells = new Map<string, VirshShell>();

// One that waits for a libvirtd that hangs would not notice that we are gone.
process.on('exit', () => {
  for (const shell of shells.values()) shell.end('left');
});

/**
 * Only the host's own libvirt (if nobody made another the default in libvirt.conf), as root: elsewhere virsh may have to ask for a
 * password, and what users have of libvirt may lie in the directory for caches.
 */
function isForShell(connect: string | undefined): boolean {
  const { VIRSH_DEFAULT_CONNECT_URI, LIBVIRT_DEFAULT_URI } = process.env;
  const uri = connect ?? VIRSH_DEFAULT_CONNECT_URI ?? LIBVIRT_DEFAULT_URI ?? '';
  return process.geteuid?.() === 0 && /^$|^qemu:\/\/\/system(\?|$)/.test(uri);
}

interface ShellOptions {
  readonly connect?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Starts what `askShell` asks, unless it runs. Undefined: there is to be none, or it cannot be started. */
export function startShell({ connect, signal }: ShellOptions): VirshShell | undefined {
  if (!isForShell(connect) || signal?.aborted === true) return undefined;
  const args = ['--quiet', ...(connect === undefined ? [] : ['--connect', connect])];
  const key = args.join(' ');
  const running = shells.get(key);
  if (running !== undefined && !running.isOver) return running;
  try {
    const shell = new VirshShell(args);
    shells.set(key, shell);
    return shell;
  } catch {
    // Whoever needs an answer says why there is none.
    return undefined;
  }
}

/**
 * What virsh prints for a command, from a virsh that is kept for such questions. Nothing may change by the command, for it may be
 * asked twice: undefined if there is no answer, for whatever reason (it failed; `signal` was aborted), and then a virsh of its own is to be run.
 */
export async function askShell(words: readonly string[], options: ShellOptions): Promise<string | undefined> {
  const { signal } = options;
  if (!words.every((word) => PLAIN_WORD.test(word))) return undefined;
  const answer = startShell(options)?.ask(words);
  if (answer === undefined || signal === undefined) return answer;
  return new Promise((resolve) => {
    const stop = () => resolve(undefined);
    signal.addEventListener('abort', stop, { once: true });
    void answer.then((output) => {
      signal.removeEventListener('abort', stop);
      resolve(output);
    });
  });
}
