/** What a shell takes as it is, in commands that people copy. */
const PLAIN = /^[A-Za-z0-9_@%+=:,./-]+$/;

/** `text` as one word of a POSIX shell, for a command that we print and somebody else runs. We start programs without a shell. */
export function shellWord(text: string): string {
  return PLAIN.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
