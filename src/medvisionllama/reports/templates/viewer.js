"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const cases = JSON.parse(find("viewer-cases").textContent);
  const layers = ["image", "prediction", "reference"];
  const received = new Map();
  const scripts = new Map();
  let viewer = null;
  let shown = null;
  let reference = null;

  // Scripts that lie beside the page call this with their volumes.
  window.receiveCase = (name, volumes) => received.set(name, volumes);

  function script(path) {
    if (!scripts.has(path)) {
      scripts.set(path, new Promise((resolve, reject) => {
        const element = document.createElement("script");
        element.src = path;
        element.onload = resolve;
        element.onerror = () => reject(new Error(`${path} is missing: keep the folder "viewer" beside this page`));
        document.head.append(element);
      }));
      scripts.get(path).catch(() => scripts.delete(path));
    }
    return scripts.get(path);
  }

  // The reference has its class's colour in a lighter shade, so that it is told apart where the two overlap.
  function labelColours(classes, towardsWhite) {
    const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    for (const { value, name, colour } of classes) {
      const [red, green, blue] = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16))
        .map((part) => Math.round(part + (255 - part) * towardsWhite));
      map.R.push(red);
      map.G.push(green);
      map.B.push(blue);
      map.A.push(255);
      map.I.push(value);
      map.labels.push(name);
    }
    return map;
  }

  // What is left of a label map when voxels within a structure are taken away: its surface, an outline in every slice.
  function surfaceOf(labels, [, columns, rows, slices]) {
    const surface = new labels.constructor(labels.length);
    const [row, slice] = [columns, columns * rows];
    const steps = [1, row, slice, row - 1, row + 1, slice - 1, slice + 1, slice - row, slice + row];
    for (let k = 0, at = 0; k < slices; k += 1) {
      for (let j = 0; j < rows; j += 1) {
        for (let i = 0; i < columns; i += 1, at += 1) {
          const edge = i === 0 || j === 0 || k === 0 || i === columns - 1 || j === rows - 1 || k === slices - 1;
          const inside = !edge && steps.every((step) => labels[at - step] === labels[at] && labels[at + step] === labels[at]);
          if (!inside) surface[at] = labels[at];
        }
      }
    }
    return surface;
  }

  // Letters of directions are white with a black rim, legible on any tissue.
  function rimText() {
    const draw = viewer.drawText.bind(viewer);
    viewer.drawText = (place, text, scale = 1) => {
      for (const [x, y] of [[-1, -1], [-1, 1], [1, -1], [1, 1], [0, 2], [0, -2], [2, 0], [-2, 0]]) {
        draw([place[0] + x, place[1] + y], text, scale, [0, 0, 0, 1]);
      }
      draw(place, text, scale, [1, 1, 1, 1]);
    };
  }

  async function begin() {
    await script("viewer/niivue.umd.js");
    find("viewer-stage").hidden = false;
    viewer = new niivue.Niivue({
      backColor: [0.047, 0.059, 0.055, 1], show3Dcrosshair: true, isRadiologicalConvention: true, showLegend: false,
      sagittalNoseLeft: true, multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS, crosshairColor: [1, 1, 1, 0.7],
      crosshairWidth: 0.3, multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID, dragAndDropEnabled: false, isNearestInterpolation: false, logLevel: "error",
    });
    viewer.onLocationChange = tellPlace;
    await viewer.attachToCanvas(find("viewer-canvas"));
    rimText();
  }

  async function open() {
    const chosen = cases[Number(find("viewer-case").value)];
    if (!viewer) await begin();
    if (shown !== chosen) {
      await script(`viewer/${chosen.file}.js`);
      const volumes = received.get(chosen.file);
      for (const volume of [...viewer.volumes]) viewer.removeVolume(volume);
      shown = chosen;
      for (const layer of layers.filter((name) => name in volumes)) {
        const volume = await niivue.NVImage.loadFromBase64({
          base64: volumes[layer], name: `${layer}.nii.gz`, colormap: "gray", opacity: opacityOf(layer),
        });
        if (layer !== "image") volume.setColormapLabel(labelColours(chosen.classes, layer === "reference" ? 0.65 : 0));
        if (layer === "reference") {
          reference = volume.img;
          volume.img = surfaceOf(reference, volume.hdr.dims);
        }
        viewer.addVolume(volume);
      }
      tellClasses(chosen.classes);
      find("reference-label").hidden = !chosen.reference;
      viewer.scene.crosshairPos.set(chosen.centre);
    }
    viewer.setSliceType(Number(find("viewer-view").value));
    viewer.updateGLVolume();
    viewer.createOnLocationChange();
    find("viewer-stage").dataset.shown = chosen.file;
  }

  function opacityOf(layer) {
    return Number(find(`opacity-${layer}`).value);
  }

  function tellClasses(classes) {
    find("viewer-classes").replaceChildren(...classes.map(({ name, colour }) => {
      const item = document.createElement("li");
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = colour;
      item.append(swatch, name);
      return item;
    }));
  }

  function referenceAt([i, j, k]) {
    const [, columns, rows] = viewer.volumes[0].hdr.dims;
    return reference[i + columns * (j + rows * k)];
  }

  function tellPlace(place) {
    const [x, y, z] = place.mm;
    const side = (value, plus, minus) => `${Math.abs(value).toFixed(1)} mm ${value < 0 ? minus : plus}`;
    const names = new Map(shown.classes.map(({ value, name }) => [value, name]));
    const at = layers.slice(1).map((layer) => {
      const found = place.values.find((entry) => entry.name.startsWith(layer));
      const value = found && layer === "reference" ? referenceAt(place.vox) : found?.value;
      return found ? `${layer}: ${names.get(Math.round(value)) ?? "background"}` : "";
    });
    find("viewer-place").textContent = [
      [side(x, "right", "left"), side(y, "front", "back"), side(z, "up", "down")].join(", "), ...at,
    ].filter(Boolean).join("; ");
    place.frac.forEach((value, axis) => { if (axis < 3) find(`cross-${axis}`).value = value; });
  }

  function guarded(work) {
    return async (event) => {
      event.preventDefault();
      find("viewer-fault").textContent = "";
      try {
        await work(event);
      } catch (error) {
        find("viewer-fault").textContent = `The viewer cannot start: ${error.message}. The pictures above stand in.`;
      }
    };
  }

  find("viewer-controls").addEventListener("submit", guarded(open));
  find("viewer-case").addEventListener("change", guarded(async () => viewer && open()));
  find("viewer-view").addEventListener("change", guarded(async () => viewer && open()));
  layers.forEach((layer) => find(`opacity-${layer}`).addEventListener("input", () => {
    const index = viewer.volumes.findIndex((volume) => volume.name.startsWith(layer));
    if (index >= 0) viewer.setOpacity(index, opacityOf(layer));
  }));
  [0, 1, 2].forEach((axis) => find(`cross-${axis}`).addEventListener("input", (event) => {
    viewer.scene.crosshairPos[axis] = Number(event.target.value);
    viewer.drawScene();
    viewer.createOnLocationChange();
  }));
})();
