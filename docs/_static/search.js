// The chapter that a term is built in comes first, and below each result stands the sentence that was found.
// All texts are in sentences.js, so that no page is fetched and the search works from the disk as well.
document.addEventListener("DOMContentLoaded", () => {
  const asked = (new URLSearchParams(window.location.search).get("q") || "").trim().toLowerCase();
  const stemmer = typeof Stemmer === "undefined" ? null : new Stemmer();
  const words = asked.split(/[^\p{L}\p{N}_]+/u).filter(Boolean);
  const stemOf = (word) => {
    const stem = stemmer && word.length > 4 ? stemmer.stemWord(word) : word;
    return word.startsWith(stem) ? stem : word.slice(0, stem.length - 1);  // rotary: rotari
  };
  const stems = words.map(stemOf);
  const results = document.getElementById("search-results");
  if (!results || !words.length) return;

  const sentenceOf = (page) => {
    let best = "", most = 0;
    for (const sentence of window.COURSE_SENTENCES[page] || []) {
      const low = sentence.toLowerCase();
      const found = stems.filter((stem) => low.includes(stem)).length + (low.includes(asked) ? 1 : 0);
      if (found > most) [best, most] = [sentence, found];
    }
    return best;
  };
  const escaped = stems.map((stem) => stem.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const pattern = new RegExp(`(${escaped.join("|")})`, "gi");
  const context = (text) => {
    const line = document.createElement("p");
    line.className = "context";
    const start = Math.max(0, text.search(pattern) - 120);
    const shown = (start ? "… " : "") + text.slice(start, start + 300) + (text.length > start + 300 ? " …" : "");
    for (const [i, part] of shown.split(pattern).entries()) {
      const piece = document.createElement(i % 2 ? "mark" : "span");
      piece.textContent = part;
      line.append(piece);
    }
    return line;
  };
  const pageOf = (link) => link.getAttribute("href").split(/[#?]/)[0].replace(/\.html$/, "");
  const home = window.COURSE_TERMS[asked];
  const complete = () => {
    const list = results.querySelector("ul.search");
    if (home && list && !list.querySelector(".course-home")) {
      const item = document.createElement("li");
      item.className = "course-home";
      const link = item.appendChild(document.createElement("a"));
      link.href = `${home}.html`;
      link.textContent = window.COURSE_TITLES[home];
      list.prepend(item);
    }
    for (const item of results.querySelectorAll("li:not([data-complete])")) {
      const link = item.querySelector("a");
      if (!link) continue;
      item.dataset.complete = "yes";
      if (link.getAttribute("href") === `${home}.html` && !item.classList.contains("course-home")) item.remove();
      const sentence = sentenceOf(pageOf(link));
      if (sentence) item.append(context(sentence));
    }
  };
  new MutationObserver(complete).observe(results, { childList: true, subtree: true });
  complete();
});
