"Answers that are the same but for names: a hint for whoever teaches, never a score."

import ast
import hashlib
from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

SHORTEST = 60  # nodes of the syntax tree: what is shorter, many write alike
COMMON = 0.2  # of the class: an answer that more have alike is no sign of anything


class SimilarPair(NamedTuple):
    "Two students with equal answers."

    first: str
    second: str
    exercises: list[str]  # whose answers are the same but for names


def fingerprints(
    sources: list[str],  # of the code cells
    names: Iterable[str],  # of exercises
) -> dict[str, str]:  # name of an exercise -> 16 hexadecimal digits
    "What stays of each answer without names, comments, types, layout; short ones are left out."
    found: dict[str, ast.stmt] = {}
    imported: dict[str, str] = {}
    for source in sources:
        try:
            body = ast.parse(source).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = node
            elif isinstance(node, ast.Import):
                imported |= {a.asname or a.name: a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    prints = {}
    for name in names:
        if name in found:
            try:
                text, size = _without_names(name, found, imported)
            except (RecursionError, MemoryError, ValueError):
                continue
            if size >= SHORTEST:
                prints[name] = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
    return prints


def _without_names(name: str, found: dict, imported: dict) -> tuple[str, int]:
    "The answer and the helpers that it uses, as text, and how many nodes they have."
    renamed: dict[str, str] = {}
    todo, seen, texts, size = [name], {name}, [], 0
    while todo:
        tree = found[todo.pop(0)]
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
            n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)
        }
        stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and _stores(n)}
        own = stored | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        own |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        size += sum(1 for _ in ast.walk(tree))
        copy = _Plain(own | (used & found.keys()), renamed, imported).visit(
            ast.parse(ast.unparse(tree)).body[0]
        )
        texts.append(ast.dump(copy))
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in found and node.id not in seen:
                seen.add(node.id)
                todo.append(node.id)
    return "\n".join(texts), size


def _stores(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


class _Plain(ast.NodeTransformer):
    "Takes away what can be changed without changing anything."

    def __init__(self, own: set[str], renamed: dict[str, str], imported: dict[str, str]):
        self.own, self.renamed, self.imported = own, renamed, imported

    def _name(self, name: str) -> str:
        if name in self.own:
            return self.renamed.setdefault(name, f"n{len(self.renamed)}")
        return self.imported.get(name, name)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self._name(node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self._name(node.arg), None)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.Pass()
        return self.visit(ast.Assign([node.target], node.value))

    def _definition(self, node):
        node.name, body = self._name(node.name), node.body
        if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        return self.generic_visit(node)

    visit_FunctionDef = visit_ClassDef = _definition


def similar_pairs(
    prints: dict[str, dict[str, str]],  # student -> fingerprints of the answers
) -> list[SimilarPair]:  # most in common first
    "Pairs of students with an answer in common that few others have."
    owners: dict[tuple[str, str], list[str]] = {}
    for student, answers in prints.items():
        for exercise, text in answers.items():
            owners.setdefault((exercise, text), []).append(student)
    common: dict[tuple[str, str], list[str]] = {}
    for (exercise, _), students in owners.items():
        if 2 <= len(students) <= max(3, COMMON * len(prints)):
            for pair in combinations(sorted(students), 2):
                common.setdefault(pair, []).append(exercise)
    pairs = [SimilarPair(one, two, sorted(names)) for (one, two), names in common.items()]
    return sorted(pairs, key=lambda pair: (-len(pair.exercises), pair))
