import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { execa } from 'execa';

export type ShellName = 'bash' | 'zsh';

const TAB = '\t';
/** Ctrl-G: writes down the line, and empties it. */
const SHOW = '\x07';

/** What is run in each shell before anything is typed: Tab puts all matches onto the line. */
const SETTINGS: Readonly<Record<ShellName, (directory: string, script: string) => string>> = {
  bash: (directory, script) => `source '${script}'
bind 'TAB: insert-completions'
bind 'set completion-query-items 0'
bind -x '"\\C-g": printf %s "$READLINE_LINE" >"${directory}/new"; mv "${directory}/new" "${directory}/line"; READLINE_LINE=; READLINE_POINT=0'
`,
  zsh: (directory, script) => `fpath=('${path.dirname(script)}' $fpath)
autoload -Uz compinit && compinit -u -d '${directory}/zcompdump'
insert-all() { _main_complete; compstate[insert]=all; compstate[list]=; }
zle -C insert-all complete-word insert-all
bindkey '^I' insert-all
show() { print -rn -- "$BUFFER" >'${directory}/new'; mv '${directory}/new' '${directory}/line'; BUFFER=; }
zle -N show
bindkey '^G' show
`,
};

const COMMANDS: Readonly<Record<ShellName, (settings: string) => string>> = {
  bash: (settings) => `bash --noprofile --rcfile '${settings}' -i`,
  zsh: (settings) => `ZDOTDIR='${path.dirname(settings)}' zsh -d -i`,
};

/** A real shell on a terminal, that a completion script was read into. */
export class TypedShell {
  readonly #directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-shell-'));
  readonly #process;
  #screen = '';

  constructor(shell: ShellName, script: string, env: Readonly<Record<string, string>>) {
    const settings = path.join(this.#directory, shell === 'zsh' ? '.zshrc' : 'bashrc');
    fs.writeFileSync(settings, SETTINGS[shell](this.#directory, script));
    const args = ['--quiet', '--flush', '--command', COMMANDS[shell](settings), '/dev/null'];
    this.#process = execa('script', args, { env: { ...env, TERM: 'dumb' }, reject: false, buffer: false });
    this.#process.stdout.on('data', (data) => {
      this.#screen += data;
    });
  }

  /** Everything that the terminal showed so far. */
  get screen(): string {
    return this.#screen;
  }

  /** Types `text` and Tab; returns what is on the line then, and how long that took in milliseconds. */
  async complete(text: string): Promise<{ line: string; took: number }> {
    const file = path.join(this.#directory, 'line');
    const started = performance.now();
    this.#process.stdin.write(text + TAB + SHOW);
    while (!fs.existsSync(file)) {
      if (performance.now() - started > 60_000) throw new Error(`the shell hangs:\n${this.#screen}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    const line = fs.readFileSync(file, 'utf8');
    fs.rmSync(file);
    return { line, took: performance.now() - started };
  }

  async close(): Promise<void> {
    this.#process.stdin.end('exit\n');
    this.#process.kill('SIGHUP');
    await this.#process;
    fs.rmSync(this.#directory, { recursive: true });
  }
}
