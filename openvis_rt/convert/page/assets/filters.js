// What is shown: by class, by score and by words; and which track is chosen.

const filters = { words: "", score: 0, classes: new Set() };

function passes(track) {
  if (filters.classes.size && !filters.classes.has(track.name)) return false;
  if (track.score < filters.score) return false;
  const text = `${track.name} #${track.id}`.toLowerCase();
  return filters.words.split(/\s+/).every((word) => text.includes(word));
}

function fillClasses(changed) {
  const counts = new Map();
  for (const track of facts.tracks) counts.set(track.name, (counts.get(track.name) || 0) + 1);
  const sorted = [...counts].sort((one, other) => other[1] - one[1] || (one[0] < other[0] ? -1 : 1));
  for (const [name, count] of sorted) {
    const button = made("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    const text = made("bdi", "", name || "no name");
    button.title = name;
    button.append(text, made("span", "", count));
    button.addEventListener("click", () => {
      if (!filters.classes.delete(name)) filters.classes.add(name);
      button.setAttribute("aria-pressed", filters.classes.has(name));
      changed();
    });
    element("classes").append(button);
  }
  element("classes").hidden = sorted.length < 2;
}

function watchFilters(changed) {
  fillClasses(changed);
  element("search").addEventListener("input", (event) => {
    filters.words = event.target.value.trim().toLowerCase();
    changed();
  });
  element("score").addEventListener("input", (event) => {
    filters.score = 10 * event.target.value;
    element("score-value").textContent = (filters.score / 1000).toFixed(2);
    changed();
  });
  element("reset").addEventListener("click", () => {
    Object.assign(filters, { words: "", score: 0 });
    filters.classes.clear();
    element("search").value = "";
    element("score").value = 0;
    element("score-value").textContent = "0.00";
    for (const button of element("classes").children) button.setAttribute("aria-pressed", "false");
    changed();
  });
}

const isFiltered = () => filters.words !== "" || filters.score > 0 || filters.classes.size > 0;
