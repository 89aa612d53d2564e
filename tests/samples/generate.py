"""Writes the made-up samples beside this file, in the column layout and the format of the published files.

Nothing here is taken from the real data. Customers have a taste, and most of what they do follows it, so that a model
has something to learn. `python tests/samples/generate.py` gives the same bytes every time.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
HEADERS = {
    "transactions_train.csv": "t_dat,customer_id,article_id,price,sales_channel_id",
    "articles.csv": (
        "article_id,product_code,prod_name,product_type_no,product_type_name,product_group_name,"
        "graphical_appearance_no,graphical_appearance_name,colour_group_code,colour_group_name,"
        "perceived_colour_value_id,perceived_colour_value_name,perceived_colour_master_id,perceived_colour_master_name,"
        "department_no,department_name,index_code,index_name,index_group_no,index_group_name,section_no,section_name,"
        "garment_group_no,garment_group_name,detail_desc"
    ),
    "customers.csv": "customer_id,FN,Active,club_member_status,fashion_news_frequency,age,postal_code",
    "olist_products_dataset.csv": (
        "product_id,product_category_name,product_name_lenght,product_description_lenght,product_photos_qty,"
        "product_weight_g,product_length_cm,product_height_cm,product_width_cm"
    ),
    "olist_orders_dataset.csv": (
        "order_id,customer_id,order_status,order_purchase_timestamp,order_approved_at,order_delivered_carrier_date,"
        "order_delivered_customer_date,order_estimated_delivery_date"
    ),
    "olist_order_items_dataset.csv": (
        "order_id,order_item_id,product_id,seller_id,shipping_limit_date,price,freight_value"
    ),
    "olist_order_reviews_dataset.csv": (
        "review_id,order_id,review_score,review_comment_title,review_comment_message,review_creation_date,"
        "review_answer_timestamp"
    ),
}
TASTE = 0.85
"""How often somebody's choice follows their taste."""


def write_csv(path: Path, rows: Iterable[Sequence[Any]], quoted: bool = False) -> None:
    """Writes a CSV with the published header; `quoted` puts quotes around all text, as Olist's files have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.StringIO(newline="")
    writer = csv.writer(
        stream, quoting=csv.QUOTE_NONNUMERIC if quoted else csv.QUOTE_MINIMAL, lineterminator="\n"
    )  # fmt: skip
    writer.writerow(HEADERS[path.name].split(","))
    for row in rows:
        # An unquoted empty cell, also between quoted ones.
        writer.writerow([Unquoted() if quoted and value == "" else value for value in row])
    path.write_text(stream.getvalue(), encoding="utf-8")


class Unquoted(float):
    """An empty cell that the csv module takes for a number and leaves without quotes."""

    def __repr__(self) -> str:
        return ""

    __str__ = __repr__


def hexadecimal(random: Random, length: int) -> str:
    return f"{random.getrandbits(4 * length):0{length}x}"


def choose(random: Random, taste: int, groups: Sequence[Sequence[Any]]) -> Any:
    """An item of the taste's group, or sometimes of any; the first ones of a group are the popular ones."""
    group = groups[taste] if random.random() < TASTE else random.choice(groups)
    return group[min(int(random.expovariate(3 / len(group))), len(group) - 1)]


# --- H&M --------------------------------------------------------------------------------------------------------------

# index_code, index_name, index_group_no, index_group_name, section_no, section_name, department_no, department_name
HM_SECTIONS = [
    ("A", "Ladieswear", 1, "Ladieswear", 16, "Womens Everyday Basics", 1676, "Jersey Basic"),
    ("F", "Menswear", 3, "Menswear", 26, "Men Underwear", 7616, "Socks Bin"),
    ("S", "Sport", 26, "Sport", 5, "Ladies H&M Sport", 8310, "Ladies Sport Tights"),
    ("G", "Baby Sizes 50-98", 4, "Baby/Children", 44, "Baby Essentials & Complements", 6515, "Baby Basics"),
]
# product_type_no, product_type_name, product_group_name, garment_group_no, garment_group_name
HM_TYPES = [
    [(253, "Vest top", "Garment Upper body", 1002, "Jersey Basic"),
     (265, "Dress", "Garment Full body", 1013, "Dresses")],
    [(302, "Socks", "Socks & Tights", 1021, "Socks and Tights"),
     (95, "Boxers", "Underwear", 1017, "Under-, Nightwear")],
    [(273, "Leggings/Tights", "Garment Lower body", 1005, "Jersey Fancy"),
     (306, "Bra", "Underwear", 1017, "Under-, Nightwear")],
    [(256, "Bodysuit", "Garment Full body", 1002, "Jersey Basic"),
     (76, "Hat/beanie", "Accessories", 1019, "Accessories")],
]  # fmt: skip
HM_COLOURS = [
    (9, "Black", 4, "Dark", 5, "Black"), (10, "White", 3, "Light", 9, "White"),
    (51, "Light Pink", 1, "Dusty Light", 4, "Pink"), (73, "Dark Blue", 4, "Dark", 2, "Blue"),
]  # fmt: skip
HM_PATTERNS = [(1010016, "Solid"), (1010017, "Stripe"), (1010001, "All over pattern")]


def write_hm(folder: Path) -> None:
    """160 articles, 90 customers and 730 purchases of one autumn."""
    random = Random(1)
    groups: list[list[str]] = []
    articles = []
    prices = {}
    for section, types in zip(HM_SECTIONS, HM_TYPES, strict=True):
        group = []
        for number in range(40):
            code = f"0{random.randrange(100_000, 999_999)}"
            article = f"{code}{number % 9 + 1:03d}"
            kind = random.choice(types)
            pattern, colour = random.choice(HM_PATTERNS), random.choice(HM_COLOURS)
            name = f"{random.choice(['Ida', 'Tom', 'Basic', 'Luna', 'Vera', 'Box'])} {kind[1].lower().split('/')[0]}"
            detail = f"{kind[1]} in soft {random.choice(['jersey', 'cotton', 'ribbed knit'])}, {colour[1].lower()}."
            index_code, index_name, index_group_no, index_group, section_no, section_name, department_no, department = (
                section
            )
            articles.append((
                article, code, name, *kind[:3], *pattern, *colour, department_no, department, index_code, index_name,
                index_group_no, index_group, section_no, section_name, *kind[3:],
                "" if number % 13 == 12 else detail,
            ))  # fmt: skip
            prices[article] = random.choice([0.0169, 0.0254, 0.0338, 0.0508])
            group.append(article)
        groups.append(group)
    # As published, the articles are sorted by their id.
    write_csv(folder / "articles.csv", sorted(articles))
    customers = []
    tastes = {}
    for number in range(90):
        customer = hexadecimal(random, 64)
        tastes[customer] = number % 4
        age = "" if number % 11 == 10 else round(random.gauss([24, 38, 30, 33][number % 4], 4))
        reads = number % 3 == 0
        customers.append((
            customer, 1.0 if reads else "", 1.0 if reads else "", random.choice(["ACTIVE", "ACTIVE", "PRE-CREATE"]),
            "Regularly" if reads else "NONE", age, hexadecimal(random, 64),
        ))  # fmt: skip
    write_csv(folder / "customers.csv", sorted(customers))
    rows = []
    for _ in range(700):
        customer = random.choice(list(tastes))
        article = choose(random, tastes[customer], groups)
        day = datetime.date(2019, 9, 2) + datetime.timedelta(days=random.randrange(90))
        price = f"{prices[article] * random.choice([1, 1, 0.8]):.18f}".rstrip("0")
        rows.append((day.isoformat(), customer, article, price, random.choice([1, 2, 2])))
    # Two pairs of the same socks on one day are two equal rows.
    rows += random.sample(rows, 30)
    write_csv(folder / "transactions_train.csv", sorted(rows))


# --- Olist ------------------------------------------------------------------------------------------------------------

# Two categories have no translation, as in the published files.
OLIST_CATEGORIES = {
    "beleza_saude": "health_beauty", "informatica_acessorios": "computers_accessories", "automotivo": "auto",
    "cama_mesa_banho": "bed_bath_table", "esporte_lazer": "sports_leisure", "bebes": "baby", "relogios_presentes":
    "watches_gifts", "pc_gamer": "",
}  # fmt: skip
OLIST_TASTES = [("beleza_saude", "bebes"), ("informatica_acessorios", "pc_gamer"), ("automotivo", "esporte_lazer"),
                ("cama_mesa_banho", "relogios_presentes")]  # fmt: skip
COMMENTS = [
    "Recebi bem antes do prazo.",
    'Produto "ótimo", recomendo',
    "Chegou tudo certo.\nObrigada!",
    "Não gostei",
    "",
]


def write_olist(folder: Path) -> None:
    """140 products and 180 orders of 80 customers, most with several items."""
    random = Random(2)
    products = []
    groups: list[list[str]] = []
    for taste in OLIST_TASTES:
        group = []
        for number in range(35):
            product = hexadecimal(random, 32)
            category = "" if number == 34 else random.choice(taste)
            sizes = [random.randrange(*span) for span in ((100, 9000), (16, 60), (5, 40), (11, 40))]
            lengths: list[Any] = ["", "", ""]
            if category:
                lengths = [random.randrange(30, 60), random.randrange(100, 2000), random.randrange(1, 6)]
            products.append((product, category, *lengths, *sizes))
            group.append(product)
        groups.append(group)
    write_csv(folder / "olist_products_dataset.csv", sorted(products), quoted=True)
    names = "\r\n".join(f"{name},{english}" for name, english in OLIST_CATEGORIES.items() if english)
    # As published: a byte order mark, and no quotes.
    text = f"\ufeffproduct_category_name,product_category_name_english\r\n{names}\r\n"
    (folder / "product_category_name_translation.csv").write_bytes(text.encode())

    customers = [hexadecimal(random, 32) for _ in range(80)]
    sellers = [hexadecimal(random, 32) for _ in range(9)]
    orders, items, reviews = [], [], []
    had: set[tuple[int, str]] = set()
    for _ in range(180):
        taste = random.randrange(80)
        order = hexadecimal(random, 32)
        bought = datetime.datetime(2017, 3, 1) + datetime.timedelta(seconds=random.randrange(300 * 86400))
        delivered = bought + datetime.timedelta(days=random.randrange(3, 20), seconds=random.randrange(86400))
        on_its_way = random.random() < 0.04
        orders.append((
            order, customers[taste], "shipped" if on_its_way else "delivered", str(bought),
            str(bought + datetime.timedelta(minutes=random.randrange(9, 90))), str(bought + datetime.timedelta(days=2)),
            "" if on_its_way else str(delivered), str((bought + datetime.timedelta(days=25)).date()) + " 00:00:00",
        ))  # fmt: skip
        place = 0
        for _ in range(random.choice([2, 2, 3, 4, 5])):
            product = choose(random, taste % 4, groups)
            if (taste, product) in had:
                continue
            had.add((taste, product))
            # Several pieces of a product are several rows.
            for _ in range(random.choice([1] * 14 + [2, 3])):
                place += 1
                items.append((
                    order, place, product, random.choice(sellers), str(bought + datetime.timedelta(days=5)),
                    float(random.randrange(999, 19999)) / 100, float(random.randrange(700, 3000)) / 100,
                ))  # fmt: skip
        if not on_its_way:
            # A few orders were reviewed twice.
            for again in range(1 + (random.random() < 0.03)):
                day = (delivered + datetime.timedelta(days=1 + again)).date()
                reviews.append((
                    hexadecimal(random, 32), order, random.choice([5, 5, 5, 4, 4, 3, 1]), "",
                    random.choice(COMMENTS) if random.random() < 0.3 else "", f"{day} 00:00:00", f"{day} 21:46:59",
                ))  # fmt: skip
    write_csv(folder / "olist_orders_dataset.csv", orders, quoted=True)
    write_csv(folder / "olist_order_items_dataset.csv", sorted(items), quoted=True)
    write_csv(folder / "olist_order_reviews_dataset.csv", reviews, quoted=True)


# --- Books ------------------------------------------------------------------------------------------------------------

KEY_LETTERS = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"


def push_key(random: Random) -> str:
    """A key as Firebase makes them."""
    return "-M" + "".join(random.choice(KEY_LETTERS) for _ in range(18))


def write_books(folder: Path) -> None:
    """A Realtime Database export: 72 books, some of them twice, and 750 ratings of 45 readers in half stars."""
    random = Random(3)
    books: dict[str, dict[str, Any]] = {}
    groups: list[list[tuple[str, str]]] = [[], [], [], []]
    for number in range(72):
        # Every other one is an ISBN-10, which may begin with 0.
        isbn = f"0{random.randrange(10**8, 10**9)}" if number % 2 else f"978{random.randrange(10**9, 10**10)}"
        genre = ["Fantasy", "Crime", "Science", "Romance"][number % 4]
        book = {
            "author": random.choice(["A. Lima", "B. Øst", "C. Ray", "D. Ito"]), "isbn": isbn,
            "title": f"{random.choice(['The last', 'A first', 'My'])} {genre.lower()} book {number}",
        }  # fmt: skip
        key = push_key(random)
        books[key] = book
        groups[number % 4].append((key, isbn))
        if number % 10 == 0:
            # Somebody added the book once more.
            key = push_key(random)
            books[key] = book
            groups[number % 4].append((key, isbn))
    readers = ["".join(random.choice(KEY_LETTERS[1:]) for _ in range(28)) for _ in range(45)]
    quality = {key: random.gauss(0, 0.7) for key in books}
    leniency = [random.gauss(3.3, 0.6) for _ in readers]
    ratings: dict[str, dict[str, Any]] = {}
    for _ in range(750):
        reader = random.randrange(45)
        key, isbn = choose(random, reader % 4, groups)
        liked = (key, isbn) in groups[reader % 4]
        stars = random.gauss(leniency[reader] + quality[key] + (0.3 if liked else -0.7), 0.5)
        rating = min(5.0, max(0.5, round(2 * stars) / 2))
        ratings[push_key(random)] = {
            "bookId": key, "isbn": isbn, "myRate": int(rating) if rating == int(rating) else rating,
            "userId": readers[reader],
        }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    export = {"Books": books, "User_Book": ratings}
    text = json.dumps(export, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    (folder / "bookapp-default-rtdb-export.json").write_text(text, encoding="utf-8")


def main(folder: Path = HERE) -> None:
    """Writes all samples."""
    write_hm(folder / "hm")
    write_olist(folder / "olist")
    write_books(folder / "books")


if __name__ == "__main__":
    main()
