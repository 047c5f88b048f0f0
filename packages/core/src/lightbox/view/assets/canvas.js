// The image and what is drawn on it. The file goes to Python as text in an event, without its name, and comes back as
// an address that holds the picture; `props.value` is the region as JSON, or "".
const canvas = element.querySelector(".lb-canvas");
const pen = canvas.getContext("2d");
const brush = element.querySelector(".lb-brush");
const MOST_BYTES = 256 * 1024 * 1024;
const LEAST_STEP = 0.004; // of the image: closer places of a stroke are one
let picture = null;
let tool = "box";
let strokes = [];
let isDown = false;

function place(event) {
  const edge = canvas.getBoundingClientRect();
  const inside = (at, size) => Math.min(1, Math.max(0, at / size));
  return [inside(event.clientX - edge.left, edge.width), inside(event.clientY - edge.top, edge.height)];
}

function draw() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (!picture) return;
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const across = canvas.width, down = canvas.height, line = Math.max(2, across / 200);
  pen.strokeStyle = pen.fillStyle = tool === "mask" ? "rgba(255, 176, 0, 0.5)" : "rgb(255, 176, 0)";
  pen.lineCap = pen.lineJoin = "round";
  for (const stroke of strokes) {
    const [first, last] = [stroke[0], stroke[stroke.length - 1]];
    pen.beginPath();
    if (tool === "box") {
      pen.lineWidth = line;
      pen.strokeRect(first[0] * across, first[1] * down, (last[0] - first[0]) * across, (last[1] - first[1]) * down);
    } else if (tool === "point") {
      pen.arc(first[0] * across, first[1] * down, 3 * line, 0, 2 * Math.PI);
      pen.fill();
    } else {
      pen.lineWidth = Number(brush.value) * Math.min(across, down);
      pen.moveTo(first[0] * across, first[1] * down);
      for (const [x, y] of stroke) pen.lineTo(x * across, y * down);
      pen.lineTo(last[0] * across + 0.01, last[1] * down);
      pen.stroke();
    }
  }
}

function tell() {
  const isEmpty = strokes.length === 0 || (tool === "box" && strokes[0].length < 2);
  props.value = isEmpty ? "" : JSON.stringify({ tool, strokes, width: Number(brush.value) });
}

function choose(name) {
  if (name) tool = name;
  strokes = [];
  for (const button of element.querySelectorAll("[data-tool]"))
    button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  tell();
  draw();
}

async function send(file) {
  if (!file) return;
  if (file.size > MOST_BYTES) return trigger("upload", { content: "", size: file.size });
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let start = 0; start < bytes.length; start += 32768)
    text += String.fromCharCode(...bytes.subarray(start, start + 32768));
  trigger("upload", { content: btoa(text), size: file.size });
}

function show() {
  strokes = [];
  tell();
  if (!props.picture) {
    picture = null;
    return draw();
  }
  const loaded = new Image();
  loaded.onload = () => {
    const scale = Math.max(1, Math.ceil(512 / Math.max(loaded.width, loaded.height)));
    [canvas.width, canvas.height] = [loaded.width * scale, loaded.height * scale];
    pen.imageSmoothingEnabled = scale === 1;
    picture = loaded;
    draw();
    canvas.dataset.shown = String(Number(canvas.dataset.shown || 0) + 1);
  };
  loaded.src = props.picture;
}

element.querySelector(".lb-file").addEventListener("change", (event) => {
  send(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
element.addEventListener("dragover", (event) => event.preventDefault());
element.addEventListener("drop", (event) => {
  event.preventDefault();
  send(event.dataTransfer.files[0]);
});
element.querySelector(".lb-tools").addEventListener("click", (event) => {
  if (event.target.dataset.tool !== undefined) choose(event.target.dataset.tool);
});
brush.addEventListener("input", () => { tell(); draw(); });
canvas.addEventListener("pointerdown", (event) => {
  if (!picture || !props.takes_region) return;
  canvas.setPointerCapture(event.pointerId);
  isDown = true;
  if (tool !== "mask") strokes = [];
  strokes.push([place(event)]);
  draw();
});
canvas.addEventListener("pointermove", (event) => {
  if (!isDown || tool === "point") return;
  const stroke = strokes[strokes.length - 1], next = place(event), last = stroke[stroke.length - 1];
  if (tool === "box") stroke[1] = next;
  else if (Math.hypot(next[0] - last[0], next[1] - last[1]) >= LEAST_STEP) stroke.push(next);
  draw();
});
canvas.addEventListener("pointerup", () => {
  if (!isDown) return;
  isDown = false;
  tell();
});
function allow() {
  element.querySelector(".lb-film").classList.toggle("lb-whole", !props.takes_region);
  if (!props.takes_region) choose("");
}
watch("picture", show);
watch("takes_region", allow);
choose("box");
allow();
