// Puts the viewer into the package in one file, and beside it the licences of all that it bundles.
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const target = process.argv[2] ?? join("..", "src", "medvisionllama", "reports", "niivue");
const bundled = ["array-equal", "fflate", "gl-matrix", "nifti-reader-js", "zarrita", "numcodecs", "unzipit",
  "uzip-module", "reference-spec-reader", "@zarrita/storage", "@lukeed/uuid", "@lukeed/csprng",
  "@ungap/structured-clone"];

function licence(name) {
  const folder = join("node_modules", name);
  if (!existsSync(folder)) return "";
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  return file ? `\n\n${name}\n\n${readFileSync(join(folder, file), "utf8").trim()}\n` : "";
}

mkdirSync(target, { recursive: true });
copyFileSync(join("node_modules", "@niivue", "niivue", "dist", "niivue.umd.js"), join(target, "niivue.umd.js"));
const own = readFileSync("niivue-licence.txt", "utf8").trim() + "\n";
writeFileSync(join(target, "LICENCES.txt"), own + bundled.map(licence).join(""));
