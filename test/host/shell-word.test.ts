import { execa } from 'execa';
import { expect, it } from 'vitest';
import { shellWord } from '../../src/host/shell-word.js';

it.each(['mail01', '/srv/mail01', 'a=b:c,d@e+f%g'])('%s needs no quotes', (text) => {
  expect(shellWord(text)).toBe(text);
});

it.each(['two words', '', "it's", `"$(id)" \`id\` \\ * ? ~ # ; & | < > ! \n`, "''", '~root'])(
  'the shell takes %j for one word, as it is',
  async (text) => {
    const { stdout } = await execa('sh', ['-c', `printf '<%s>' ${shellWord(text)}`]);
    expect(stdout).toBe(`<${text}>`);
  },
);
