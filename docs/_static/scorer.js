// Chapters before what surrounds them; first of all the chapter that a term is defined in (terms.js).
var Scorer = {
  score: ([page, title, anchor, description, score]) => {
    const asked = (new URLSearchParams(window.location.search).get("q") || "").trim().toLowerCase();
    const home = (window.COURSE_TERMS || {})[asked];
    if (home === page) return score + (anchor ? 500 : 1000);
    if (page.startsWith("nbs/")) return score + 100;
    if (page.startsWith("exercises/")) return score + 20;
    if (page.startsWith("api/")) return score + 10;
    return score + 50;
  },
  objNameMatch: 11, objPartialMatch: 6, objPrio: { 0: 15, 1: 5, 2: -5 }, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
