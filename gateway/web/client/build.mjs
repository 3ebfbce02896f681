// Checks the sources and writes them as one ES module with its types: node build.mjs [DIRECTORY OF node_modules] [OUTPUT]
//
// The output is committed, so that the gateway serves it without a build; a test builds it again and compares.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const modules = resolve(process.argv[2] ?? here);
const out = process.argv[3] && resolve(process.argv[3]);
const ts = createRequire(join(modules, "package.json"))("typescript");

const ORDER = ["msgpack", "feed", "keepers", "device", "client"];
const files = ORDER.map((name) => join(here, "src", `${name}.ts`));
const { config } = ts.readConfigFile(join(here, "tsconfig.json"), ts.sys.readFile);
const { options } = ts.parseJsonConfigFileContent(config, ts.sys, here);

const program = ts.createProgram(files, options);
const faults = ts.getPreEmitDiagnostics(program);
if (faults.length) {
  const host = { getCanonicalFileName: (name) => name, getCurrentDirectory: () => here, getNewLine: () => "\n" };
  console.error(ts.formatDiagnostics(faults, host));
  process.exit(1);
}

const types = {};
program.emit(undefined, (name, text) => { types[name] = text; }, undefined, true);

const tabs = (text) => text.replace(/^( {4})+/gm, (indent) => "\t".repeat(indent.length / 4));
const flat = (text) => text.replace(/^ +/gm, ""); // a twenty-fifth of what goes over the wire; no text here has two lines
const joined = (texts, indented) => texts.map((text) => indented(text.replace(/^import .*;\n/gm, "").trim())).join("\n\n") + "\n";
const scripts = files.map((file) =>
  ts.transpileModule(readFileSync(file, "utf8"), { compilerOptions: { ...options, removeComments: true } }).outputText);
const declarations = ORDER.map((name) => types[join(here, "src", `${name}.d.ts`)]);

if (out) mkdirSync(out, { recursive: true });
const head = "// vestnik-client: made from gateway/web/client/src by build.mjs; change it there.\n";
writeFileSync(join(out ?? here, "vestnik-client.js"), head + joined(scripts, flat));
writeFileSync(join(out ?? here, "vestnik-client.d.ts"), head + joined(declarations, tabs));
