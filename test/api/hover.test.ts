import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import ts from 'typescript';
import { expect, it } from 'vitest';

const HOST = resolve('test/api/hover-host.ts');
const CLASSES = {
  'pipeline-pool': [
    'AdaptiveLimit',
    'ConcurrencyLimiter',
    'LifecycleHooks',
    'PipelineManager',
    'PipelinePool',
    'ServiceGate',
  ],
  'pipeline-pool/testing': ['ScriptedFactory', 'StubE2b', 'StubJina', 'StubLlm', 'StubSerper'],
};

/** Code of a host by the property that it names; the property is the last word before the mark. */
const PROPERTIES = {
  'config of createPipelineManager':
    'const manager = createPipelineManager({ create: () => ({}), config‸: {} });',
  'pipeline of RequestContext': "void manager.run('task', (context) => context.pipeline‸);",
  'pipeline of RequestContext, destructured': "void manager.run('task', ({ pipeline‸ }) => pipeline);",
  'pipeline of Lease': 'void manager.pool.acquire().then((lease) => lease.pipeline‸);',
};

const classes = Object.entries(CLASSES).map(
  ([entry, names]) =>
    `import { ${names.join(', ')} } from '${entry}';\n${names.map((name) => `new ${name}();\n`).join('')}`,
);
const properties = Object.entries(PROPERTIES).map(([name, line]) => ({
  name,
  line: line.replace('‸', ''),
  end: line.indexOf('‸'),
}));
const code = [
  ...classes,
  "import { createPipelineManager } from 'pipeline-pool';\n",
  ...properties.map(({ line }) => `${line}\n`),
].join('');

function languageService(): ts.LanguageService {
  const { config } = ts.readConfigFile('tsconfig.json', ts.sys.readFile);
  const { options } = ts.convertCompilerOptionsFromJson(config.compilerOptions, process.cwd());
  return ts.createLanguageService({
    useCaseSensitiveFileNames: () => ts.sys.useCaseSensitiveFileNames,
    directoryExists: ts.sys.directoryExists,
    getDirectories: ts.sys.getDirectories,
    readDirectory: ts.sys.readDirectory,
    getCompilationSettings: () => options,
    getScriptFileNames: () => [HOST],
    getScriptVersion: () => '1',
    getScriptSnapshot: (file) => {
      if (file === HOST) return ts.ScriptSnapshot.fromString(code);
      return ts.sys.fileExists(file) ? ts.ScriptSnapshot.fromString(readFileSync(file, 'utf8')) : undefined;
    },
    getCurrentDirectory: () => process.cwd(),
    getDefaultLibFileName: ts.getDefaultLibFilePath,
    fileExists: (file) => file === HOST || ts.sys.fileExists(file),
    readFile: (file) => (file === HOST ? code : ts.sys.readFile(file)),
  });
}

const service = languageService();

it('an editor shows the documentation of a class where a host constructs it', () => {
  const shown = Object.values(CLASSES)
    .flat()
    .map((name) => {
      const info = service.getQuickInfoAtPosition(HOST, code.indexOf(`new ${name}(`) + 'new '.length);
      const tags = info?.tags?.map((tag) => tag.name) ?? [];
      return {
        name,
        documented: ts.displayPartsToString(info?.documentation).length > 40,
        hasExample: tags.includes('example'),
      };
    });
  expect(shown).toEqual(shown.map(({ name }) => ({ name, documented: true, hasExample: true })));
});

it('an editor shows the documentation of the properties that a host names', () => {
  const shown = properties.map(({ name, line, end }) => {
    const info = service.getQuickInfoAtPosition(HOST, code.indexOf(line) + end - 1);
    return { name, documented: ts.displayPartsToString(info?.documentation).length > 40 };
  });
  expect(shown).toEqual(properties.map(({ name }) => ({ name, documented: true })));
});
